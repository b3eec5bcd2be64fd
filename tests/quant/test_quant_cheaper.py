"""What makes a quantized model cheaper to store: scales on a grid, short mantissas, canonical order."""

import math

import numpy as np
import pytest
import torch

from pgolf.codec import series
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.canonical import canonical
from pgolf.quant.config import LqerConfig, QuantizeConfig
from pgolf.quant.grid import geometric, shortened
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore

MODEL = ModelConfig(
    layers=4, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=1, loop_end=1, xsa_layers=4, parallel="lanes",
    parallel_from=2, smear="window", attn_gate="sparse",
)  # fmt: skip


@pytest.mark.parametrize("steps", [2, 4, 8, 16, 32])
def test_gridded_scales_are_the_nearest_powers_and_known_to_the_codec(steps):
    generator = torch.Generator().manual_seed(steps)
    scale = torch.exp(torch.randn(4000, generator=generator) * 2 - 5).half().clamp_min(2.0**-14)
    found = geometric(scale, steps)
    assert np.isin(found.numpy().view(np.uint16), series.grid(steps)).all()
    ratio = (found.double() / scale.double()).log2().abs() * steps
    assert ratio.max() <= 0.5 + steps * 2.0**-10  # half a step, and the rounding of float16
    assert geometric(found, steps).equal(found)


def test_the_smallest_and_largest_scales_stay_on_the_grid():
    edges = torch.tensor([2.0**-24, 65504.0]).half()
    assert torch.isfinite(geometric(edges, 16)).all()
    assert (geometric(edges, 16) > 0).all()


@pytest.mark.parametrize("bits", range(2, 11))
def test_short_mantissas_against_exact_rounding(bits):
    values = torch.randn(2000, generator=torch.Generator().manual_seed(bits)).half()
    found = shortened(values, bits)
    for value, got in zip(values.tolist(), found.tolist(), strict=True):
        unit = 2.0 ** (max(math.frexp(value)[1] - 1, -14) - bits)
        assert abs(got - value) <= unit / 2
        assert got / unit == round(got / unit)
    assert shortened(found, bits).equal(found)
    assert np.isin(found.numpy().view(np.uint16), series.grid(bits - 10)).all()


def quantized(config):
    torch.manual_seed(0)
    model = GPT(MODEL, 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    sources, state = matrix_inputs(MODEL), model.state_dict()
    hessians = {name: torch.eye(state[matrix].size(1)) for matrix, name in sources.items()}
    return quantize_model(state, hessians, sources, config).tensors


def losses(tensors):
    model = GPT(MODEL, 64)
    model.load_state_dict(restore(tensors))
    model.prepare(24)
    generator = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(64, (2, 3, 24), generator=generator)
    return model.losses(ids, targets)


@pytest.mark.parametrize(
    "lqer", [LqerConfig(), LqerConfig(top_k=3, rank=2, group=32), LqerConfig(top_k=3, asymmetric=False)]
)
def test_canonical_order_is_the_same_function(lqer):
    tensors = quantized(QuantizeConfig(small_numel=300, lqer=lqer))
    ordered = canonical(tensors, MODEL)
    assert {key: t.shape for key, t in ordered.items()} == {key: t.shape for key, t in tensors.items()}
    assert any(not ordered[key].equal(tensors[key]) for key in tensors)
    torch.testing.assert_close(losses(ordered), losses(tensors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation", "swiglu"),
        ("attention", "differential"),
        ("value_residual", "learned"),
        ("attn_gate", "elementwise"),
    ],
)
def test_canonical_order_refuses_a_model_that_knows_its_order(name, value):
    with pytest.raises(InputError, match=rf"`model\.{name}: {value}`"):
        canonical({}, ModelConfig(**{name: value}))


def test_the_knobs_reach_what_is_stored():
    tensors = quantized(QuantizeConfig(small_numel=300, scale_steps=8, small_bits=4))
    for key, tensor in tensors.items():
        if key.endswith(".scale"):
            assert np.isin(tensor.numpy().view(np.uint16), series.grid(8)).all()
        elif "." not in key.removeprefix("blocks.") or key.endswith(("_scale", "resid_mix", "q_gain")):
            assert np.isin(tensor.numpy().view(np.uint16), series.grid(-6)).all(), key


@pytest.mark.parametrize(("key", "value"), [("scale_steps", 3), ("small_bits", 1), ("small_bits", 11)])
def test_refuses_by_name(key, value):
    with pytest.raises(InputError, match=f"`{key}` is {value}"):
        QuantizeConfig(**{key: value})
