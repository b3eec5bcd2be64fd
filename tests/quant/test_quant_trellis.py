"""Trellis-coded quantization: the best allowed levels, the gain of theory, the same inside GPTQ and the artifact."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.codec.trellis import SEGMENT, next_states, recognised
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.presets import apply_preset
from pgolf.quant.artifact import encode_model, model_bytes, unpack_model
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.gptq import feed_back, inverse_factor, weighted_error
from pgolf.quant.quantize import entropy
from pgolf.quant.run import run_quantization
from pgolf.quant.trellis import WIDEST, feed_back_trellis, halved, nearest_levels
from pgolf.sections import load_sections

ROOT = Path(__file__).parents[2]
GRID = GridConfig(bits=8, k_sigma=0.4 * 127)
CONFIG = QuantizeConfig(embed=GRID, attn=GRID, mlp=GRID, method="trellis", trellis_states=8, small_numel=300)
MODEL = ModelConfig(
    layers=1, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=1, parallel="none",
    loop_start=0, loop_end=0, loop_runs=1,
)  # fmt: skip


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 5


def columns_of(r):
    """Lines [n, T] as the columns of a matrix, for the codec."""
    return r.T[None].to(torch.int8).numpy()


def nearest(x, label):
    """The level of a class r mod 4 that is nearest to x."""
    return min((r for r in range(-124, 128) if r % 4 == label), key=lambda r: abs(x - r))


@pytest.mark.parametrize("states", [8, 64])
def test_the_search_finds_the_best_of_all_sequences(states):
    x, target = numbers(3, 9), next_states(states)
    r = nearest_levels(x, states)
    assert recognised(columns_of(r)) > 0
    for line, found in zip(x.double().tolist(), r.double(), strict=True):
        best, prices = math.inf, [[(value - nearest(value, label)) ** 2 for label in range(4)] for value in line]
        for choices in itertools.product((0, 1), repeat=len(line)):
            state, error = 0, 0.0
            for price, z1 in zip(prices, choices, strict=True):
                error += price[(state & 1) + 2 * z1]
                state = target[state, z1]
            best = min(best, error)
        assert float((torch.tensor(line) - found).square().sum()) == pytest.approx(best, rel=1e-5)


def test_levels_beyond_the_widest_are_clipped_and_a_segment_begins_anew():
    x = torch.full((1, SEGMENT + 3), 500.0)
    x[0, 1::2] = -500.0
    r = nearest_levels(x, 8)
    assert WIDEST <= r.abs().max() <= 127
    assert recognised(columns_of(r)) == 8
    assert r[0, SEGMENT] % 2 == 0


@pytest.mark.parametrize(("states", "least"), [(8, 1.0), (64, 1.15)])
def test_the_gain_over_a_plain_grid_of_equal_rate(states, least):
    """Published for 8 states: 1.1 dB (Marcellin and Fischer 1990); no quantizer gains more than pi e / 6."""
    x = numbers(24, SEGMENT)
    error = float((x - nearest_levels(x, states)).square().mean())
    assert least < 10 * math.log10(2**2 / 12 / error) < 10 * math.log10(math.pi * math.e / 6)


def problem(rows=192, columns=24):
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator) * torch.linspace(0.3, 2, columns)
    X = torch.randn(400, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), X.T @ X


def test_feedback_keeps_the_gain():
    W, H = problem()
    scale, factor = torch.full((len(W),), 0.4).half(), inverse_factor(H, 0.01)
    plain = feed_back(W, factor, scale, lambda steps, _: steps.round())
    fine = halved(scale, W)
    batch = type(factor)(*(part[None] for part in factor))
    order = torch.randperm(len(W), generator=torch.Generator().manual_seed(2))
    levels = feed_back_trellis(W[None], batch, fine[None], order[None], 8, 128)[0]
    assert recognised(levels[order][None].numpy()) == 8
    assert recognised(levels[None].numpy()) == 0
    errors = [
        weighted_error(W - q.float() * s.float()[:, None], H) for q, s in ((plain, scale), (levels, fine))
    ]  # fmt: skip
    assert 10 * math.log10(errors[0] / errors[1]) > 0.85


def test_steps_are_half_as_wide_but_hold_every_weight():
    W = torch.tensor([[0.1, -0.2, 0.3], [1.0, 40.0, 0.0]])
    scale = halved(torch.tensor([0.2, 0.2]).half(), W).float()
    torch.testing.assert_close(scale, torch.tensor([0.1, 40 / WIDEST]), rtol=1e-3, atol=0)


def quantized(config):
    torch.manual_seed(3)
    state = {name: t.clone() for name, t in GPT(MODEL, 80).state_dict().items()}
    hessians = {}
    for name, source in matrix_inputs(MODEL).items():
        state[name] = torch.randn(state[name].shape) * (0.5 + torch.rand(len(state[name]), 1))
        X = torch.randn(99, state[name].size(1))
        hessians[source] = X.T @ X
    return run_quantization(state, hessians, MODEL, config, "ab" * 32, "gauss", lambda: 0, device=torch.device("cpu"))


def test_the_artifact_saves_the_parities():
    """Of rows in canonical order, which is known before they are rounded."""
    run = quantized(replace(CONFIG, canonical=True))
    tensors = run.quantized.tensors
    names = [key for key in tensors if key.endswith(".q") and "tok_emb" not in key]
    assert len(names) == 6
    assert {recognised(tensors[name][None].numpy()) for name in names} == {8}
    given = MODEL, 80, run.config, "ab" * 32, "gauss"
    blob = encode_model(tensors, *given)
    found = unpack_model(blob)[1]
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
    plain = quantized(replace(CONFIG, canonical=True, method="gptq"))
    bytes_plain = model_bytes(plain.quantized.tensors, *given)
    assert len(blob) == pytest.approx(bytes_plain, rel=0.01)
    levels = torch.cat([tensors[name].flatten() for name in names])
    told = [sum(r.entropy * r.numel for r in each.quantized.reports) / 8 for each in (run, plain)]
    assert told[0] == pytest.approx(told[1], rel=0.02)
    assert entropy(levels) > entropy(levels >> 1) + 0.9
    errors = [
        sum(r.relative_error for r in each.quantized.reports if r.tensor_class != "embed") for each in (plain, run)
    ]
    assert errors[1] < 0.9 * errors[0]


def test_the_overlay_goes_on_the_record(tmp_path):
    params = tmp_path / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_preset(params, "record-1855", "trellis", folder=ROOT / "presets")
    sections = load_sections(params)
    assert (sections.quantize.method, sections.quantize.steps) == ("trellis", "loss")
    assert sections.calibrate.sensitivity > 0
    assert sections.quantize.lqer.top_k == 0
    assert sections.compress.codec == "gauss"


def test_matrices_together_are_rounded_as_each_alone():
    W, H = (
        torch.stack(parts) for parts in zip(problem(), (problem()[0] * 2, problem()[1] + torch.eye(24)), strict=True)
    )
    factor, scale = inverse_factor(H, 0.01), torch.full(W.shape[:2], 0.2).half()
    order = torch.arange(W.size(1)).expand(2, -1)
    both = feed_back_trellis(W, factor, scale, order, 8, 16)
    for i in range(2):
        alone = feed_back_trellis(W[i : i + 1], type(factor)(*(part[i : i + 1] for part in factor)), scale[i : i + 1],
                                  order[i : i + 1], 8, 16)  # fmt: skip
        assert np.mean((both[i] == alone[0]).numpy()) > 0.99


@pytest.mark.parametrize(
    "wrong",
    [{"row_block": 8}, {"dedup": "even"}, {"prune_ones": 5}, {"canonical": True, "lqer": LqerConfig(top_k=1)}],
    ids=str,
)
def test_what_a_trellis_does_not_go_with(wrong):
    with pytest.raises(InputError, match="trellis"):
        QuantizeConfig(method="trellis", **wrong)
