"""Rows mixed by a Hadamard matrix: the transform, what is rounded, and what comes back."""

from dataclasses import replace

import pytest
import torch
from scipy.linalg import hadamard as sylvester

from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.quant.artifact import encode_model, parameter_shapes, unpack_model
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.rotate import hadamard, rotated
from pgolf.quant.state import restore

MODEL = ModelConfig(
    layers=1, dim=48, heads=4, kv_heads=2, mlp_mult=64 / 48, rope_dims=4, xsa_layers=1, parallel="none",
    loop_start=0, loop_end=0, loop_runs=1,
)  # fmt: skip
CONFIG = QuantizeConfig(rotate=True, small_numel=100, mlp=GridConfig(bits=4, k_sigma=3.0))
FC = "blocks.0.mlp.fc.weight"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [2, 8, 64])
def test_the_fast_transform_is_sylvesters_matrix(rows):
    x = normal(rows, 5)
    T = torch.tensor(sylvester(rows)).float() / rows**0.5
    torch.testing.assert_close(hadamard(x), T @ x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hadamard(hadamard(x)), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hadamard(x[:, 0]), T @ x[:, 0], rtol=1e-5, atol=1e-5)


def test_the_predicted_loss_stays_what_it_was():
    """tr(G E H E^T) of an error is that of the mixed error under the mixed G, and a diagonal G keeps its sum."""
    W, half = normal(16, 6), normal(16, 16, seed=1)
    G = half @ half.T
    weights, found = rotated({"a": W, "b": normal(6, 6)}, {"a.G": G, "b.G": torch.eye(6), "a.B": torch.arange(16.0)})
    before, after = (G * (W @ W.T)).sum(), (found["a.G"] * (weights["a"] @ weights["a"].T)).sum()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=0)
    assert float(found["a.B"].sum()) == pytest.approx(120.0)
    assert torch.equal(found["b.G"], torch.eye(6))


@pytest.fixture(scope="module")
def problem():
    shapes = parameter_shapes(MODEL, 60)
    state = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    state[FC][3] *= 30  # one row of outliers
    sources = {name: name for name, shape in shapes.items() if len(shape) == 2}
    return state, {name: torch.eye(state[name].size(1)) for name in sources}, sources


def test_codes_are_those_of_the_mixed_rows(problem):
    state, hessians, sources = problem
    done = quantize_model(state, hessians, sources, CONFIG).tensors
    by_hand = quantize_model(
        state | {FC: hadamard(state[FC])}, hessians, sources, replace(CONFIG, rotate=False)
    ).tensors  # fmt: skip
    assert torch.equal(done[f"{FC}.q"], by_hand[f"{FC}.q"])
    torch.testing.assert_close(restore(done)[FC], hadamard(restore(by_hand)[FC]))
    assert "blocks.0.mlp.proj.weight.rot" not in done  # 48 rows
    assert torch.equal(done["blocks.0.mlp.proj.weight.q"], by_hand["blocks.0.mlp.proj.weight.q"])


@pytest.mark.parametrize("codec", ["gauss", "brotli"])
def test_the_artifact_mixes_back(problem, codec):
    state, hessians, sources = problem
    config = replace(CONFIG, lqer=LqerConfig(top_k=2))
    done = quantize_model(state, hessians, sources, config)
    found = unpack_model(encode_model(done.tensors, MODEL, 60, config, "ab" * 32, codec))[1]
    errors = {name: (value - state[name]).norm() / state[name].norm() for name, value in restore(found).items()}
    assert errors[FC] < 0.2
    assert {name: value for name, value in restore(done.tensors).items() if not value.equal(restore(found)[name])} == {}


def test_what_rotation_does_not_go_with():
    for wrong in ({"canonical": True}, {"method": "ternary"}):
        with pytest.raises(InputError, match="rotate"):
            QuantizeConfig(rotate=True, **wrong)
