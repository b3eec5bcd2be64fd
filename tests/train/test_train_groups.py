import dataclasses
import re

import pytest

from pgolf.model.config import HashConfig, ModelConfig, MultiTokenConfig, ValueEmbedConfig
from pgolf.model.gpt import GPT
from pgolf.train.groups import group_of, split_parameters

CONFIG = ModelConfig(
    layers=4, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=1, loop_end=2, parallel_from=3, xsa_layers=4
)


def test_every_parameter_is_in_the_group_of_the_specification():
    """Matrices of the blocks to Muon, the embedding by itself, all the rest is scalar."""
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


def group_members(**changes):
    """What the techniques add, by group."""
    plain, model = GPT(CONFIG, 64), GPT(dataclasses.replace(CONFIG, **changes), 64).begin_training()
    known = dict(plain.named_parameters())
    return {
        group: {re.sub(r"^blocks\.\d\.", "", name) for name in members if name not in known}
        for group, members in split_parameters(model).items()
    }


def test_parameters_of_every_technique_are_where_their_program_had_them():
    """Tables with the embedding, gates, scales and mixes scalar, further matrices of a block to Muon."""
    hashed = HashConfig(rows=8, dim=4)
    assert group_members(bigram=hashed, trigram=hashed, value_embed=ValueEmbedConfig(last=1, dim=4)) == {
        "embed": {"bigram.embed.weight", "trigram.embed.weight", "ve_shared.embed.weight"},
        "scalar": {
            "bigram.proj.weight", "trigram.proj.weight", "ve_shared.proj.weight", "bigram.factor", "trigram.factor",
            "ve_shared.factor", "ve_layer_scales",
        },
        "muon": set(),
    }  # fmt: skip
    scalars = {
        "attn.attn_gate_w", "attn.attn_gate_b", "attn.vr_lambda", "attn.diff_lambda", "mlp_gate_w", "dtg_gate_w",
        "dtg_gate_b", "smear.gate", "loop_pos", "mlp.star_scale", "mlp.star_bias",
    }  # fmt: skip
    found = group_members(
        attn_gate="per_head", value_residual="learned", attention="differential", mlp_gate=True, token_gate=True,
        smear="vector", loop_pos="normal", activation="star_relu", multi_token=MultiTokenConfig(heads=1),
    )  # fmt: skip
    assert found == {"embed": set(), "scalar": scalars, "muon": {"mtp_heads.0.weight"}}
    lanes = group_members(parallel="merge", parallel_from=3, value_residual="gated", activation="swiglu")
    assert lanes == {"embed": set(), "scalar": {"lane_merge", "vrl_lambda"}, "muon": {"mlp.gate.weight"}}
    structured = group_members(mlp_rank=0.5, mlp_blocks=2)
    assert structured["muon"] == {"mlp.fc.u.weight", "mlp.fc.v.weight", "mlp.proj.0.weight", "mlp.proj.1.weight"}


def test_gates_and_projections_can_go_to_muon():
    """PR 1520's gates, whose name its program does not know; PR 401's projections."""
    names = ("blocks.0.attn.attn_gate_w", "bigram.proj.weight", "ve_shared.proj.weight")
    assert [group_of(name) for name in names] == ["scalar"] * 3
    assert [group_of(name, ("gates",)) for name in names] == ["muon", "scalar", "scalar"]
    assert [group_of(name, ("projections",)) for name in names] == ["scalar", "muon", "muon"]
    assert group_of("blocks.0.attn.attn_gate_b", ("gates",)) == "scalar"


@pytest.mark.parametrize("name", ["blocks.0.attn.gate", "lm_head.weight", "blocks.0.norm.weight", "weight"])
def test_an_unknown_parameter_is_no_ones(name):
    with pytest.raises(AssertionError, match=name):
        group_of(name)
