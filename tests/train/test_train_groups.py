import pytest

from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.groups import group_of, split_parameters

CONFIG = ModelConfig(
    layers=4, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=1, loop_end=2, parallel_from=3, xsa_layers=4
)


def test_every_parameter_is_in_the_group_of_the_specification():
    """Spec 5.7: matrices of the blocks to Muon, the embedding by itself, all the rest is scalar."""
    model = GPT(CONFIG, 64)
    groups = split_parameters(model)
    assert groups.keys() == {"embed", "scalar", "muon"}
    assert list(groups["embed"]) == ["tok_emb.weight"]
    matrices = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
    assert groups["muon"].keys() == {f"blocks.{i}.{name}.weight" for i in range(4) for name in matrices}
    controls = ("attn_scale", "mlp_scale", "resid_mix", "attn.q_gain")
    expected = {f"blocks.{i}.{name}" for i in range(4) for name in controls} | {"skip_weights", "skip_gates"}
    assert groups["scalar"].keys() == expected
    split = [parameter for group in groups.values() for parameter in group.values()]
    assert sorted(map(id, split)) == sorted(map(id, model.parameters()))


def test_control_tensors_with_two_dimensions_stay_out_of_muon():
    model = GPT(CONFIG, 64)
    two_dimensional = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    for name in ("blocks.0.resid_mix", "skip_weights", "skip_gates"):
        assert name in two_dimensional
        assert group_of(name) == "scalar"


@pytest.mark.parametrize("name", ["blocks.0.attn.gate", "lm_head.weight", "blocks.0.norm.weight", "weight"])
def test_an_unknown_parameter_is_no_ones(name):
    with pytest.raises(AssertionError, match=name):
        group_of(name)
