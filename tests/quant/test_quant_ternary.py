"""Ternary groups against loops over their elements, and the whole way through a container."""

import fnmatch

import pytest
import torch

from pgolf.codec.container import stream_sizes
from pgolf.errors import InputError
from pgolf.lab.workbench import codes_of
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.artifact import encode_model, layout_from_header, unpack_model
from pgolf.quant.config import LqerConfig, QuantizeConfig, TensorConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore
from pgolf.quant.ternary import packed, ternary, unpacked
from pgolf.quant.ternary import restored as restored_from

TINY = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=9.0, rope_dims=4, xsa_layers=2, parallel_from=2,
    loop_start=1, loop_end=1, loop_runs=2,
)  # fmt: skip


def restored(codes, sigma):
    return restored_from(packed(codes), sigma)


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 6, 7, 128])
def test_five_digits_fill_a_byte(columns):
    codes = torch.randint(-1, 2, (5, columns), generator=torch.Generator().manual_seed(columns), dtype=torch.int8)
    stored = packed(codes)
    digits = [value + 1 for value in codes.flatten().tolist()]
    expected = [
        sum(digit * 3**place for place, digit in enumerate(digits[at : at + 5])) for at in range(0, len(digits), 5)
    ]
    assert [value % 256 for value in stored.tolist()] == expected
    assert torch.equal(unpacked(stored, 5), codes)
    stored[0] = 243 - 256
    with pytest.raises(InputError, match="beyond its five digits"):
        unpacked(stored, 5)


@pytest.mark.parametrize("columns", [1, 100, 128, 300])
def test_groups_follow_the_formulas(columns):
    W = torch.randn(3, columns, generator=torch.Generator().manual_seed(columns))
    codes, sigma = ternary(W)
    found = restored(codes, sigma)
    assert sigma.shape == (3, -(-columns // 128))
    for i in range(3):
        for start in range(0, columns, 128):
            group = W[i, start : start + 128].tolist()
            step = torch.tensor(max(sum(map(abs, group)) / 128, 1e-8)).half().item()
            assert sigma[i, start // 128].item() == pytest.approx(step, rel=2**-10)
            q = [max(-1, min(1, round(w / sigma[i, start // 128].item()))) for w in group]
            assert codes[i, start : start + 128].tolist() == q
            mean = max(sum(map(abs, q)) / 128, 1e-8)
            expected = [value * sigma[i, start // 128].item() / mean for value in q]
            assert found[i, start : start + 128].tolist() == pytest.approx(expected, rel=1e-6)


def test_the_mean_magnitude_of_a_whole_group_survives():
    W = torch.randn(8, 256, generator=torch.Generator().manual_seed(1))
    found = restored(*ternary(W))
    assert torch.allclose(found.abs().view(8, 2, 128).mean(2), W.abs().view(8, 2, 128).mean(2), rtol=1e-3)


def test_zeros_stay_zeros_and_infinities_are_refused():
    assert not restored(*ternary(torch.zeros(2, 130))).any()
    with pytest.raises(InputError, match="beyond float16"):
        ternary(torch.full((1, 8), 1e9))


@pytest.mark.parametrize(("pattern", "codec"), [
    ("*.mlp.*", "gauss"), ("*.mlp.*", "pergroup"), ("*.mlp.fc.weight", "gauss"), ("blocks.1.mlp.*", "auto"),
])  # fmt: skip
def test_a_ternary_model_comes_back_from_its_file(pattern, codec):
    torch.manual_seed(0)
    model = GPT(TINY, 40)
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    sources = matrix_inputs(TINY)
    widths = {sources[name]: state[name].size(1) for name in sources}
    hessians = {name: torch.eye(width) for name, width in widths.items()}
    tensors = (TensorConfig(name=pattern, bits=2),)
    config = QuantizeConfig(small_numel=100, method="ternary", tensors=tensors, lqer=LqerConfig(top_k=1))
    ternaries = fnmatch.filter(sources, pattern)
    done = quantize_model(state, hessians, sources, config)
    for name in sources:
        scale = done.tensors[f"{name}.scale"]
        assert scale.ndim == (2 if name in ternaries else 1)
        if name in ternaries:
            assert torch.equal(codes_of(done.tensors)[name], ternary(state[name])[0])
    blob = encode_model(done.tensors, TINY, 40, config, "0" * 64, codec)
    weights = sum(state[name].numel() for name in ternaries)
    assert stream_sizes(blob, layout_from_header)["ternary"].packed <= -(-weights // 5) + 6  # 1.6 bits
    _, found = unpack_model(blob)
    before, after = restore(done.tensors), restore(found)
    assert all(torch.equal(before[name], after[name]) for name in state)


def test_groups_cannot_be_reordered():
    with pytest.raises(InputError, match="canonical"):
        QuantizeConfig(method="ternary", canonical=True)
