"""Fit to the cap: the search on a made-up codec, and the real one on small models."""

import math
from dataclasses import replace

import pytest
import torch

from pgolf.config import build, to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.artifact import encode_model, unpack_model
from pgolf.quant.config import FitConfig, GridConfig, LqerConfig, QuantizeConfig, TensorConfig
from pgolf.quant.fit import LEAST_SLACK, REACH, SLACK, TRIALS, fit, grid_at, scaled
from pgolf.quant.policy import resolve
from pgolf.quant.quantize import Quantized
from pgolf.quant.rate import bits_per_code
from pgolf.quant.run import run_quantization
from pgolf.quant.summary import fit_metrics

CONFIG = QuantizeConfig(
    embed=GridConfig(bits=7, k_sigma=14.0), attn=GridConfig(bits=6, k_sigma=13.0), mlp=GridConfig(bits=6, k_sigma=11.5),
    small_numel=512,
)  # fmt: skip
TOKENIZER = "ab" * 32


def model_of(layers, dim, vocab_size, seed):
    config = ModelConfig(
        layers=layers, dim=dim, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=1, parallel="none",
        loop_start=0, loop_end=0, loop_runs=1,
    )  # fmt: skip
    torch.manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in GPT(config, vocab_size).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for tensor in state.values():
        if tensor.ndim == 2 and len(tensor):  # rows of different size, and a few outliers, as in trained weights
            spread = torch.rand(len(tensor), 1, generator=generator) + 0.2
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
            tensor[0, 0] = 12 * spread[0]
    hessians = {}
    for name, source in matrix_inputs(config).items():
        x = torch.randn(64, state[name].size(1), generator=generator)
        hessians[source] = x.T @ x
    return config, state, hessians


@pytest.mark.parametrize(
    ("layers", "dim", "vocab_size", "share", "codec"),
    [
        (1, 32, 300, 0.45, "brotli"),
        (1, 48, 400, 0.5, "gauss"),
        (3, 64, 256, 0.38, "brotli"),
        (2, 64, 900, 0.6, "zstd"),
        (4, 32, 200, 0.42, "brotli"),
    ],
)
def test_models_of_five_sizes_end_just_below_their_caps(layers, dim, vocab_size, share, codec):
    model, state, hessians = model_of(layers, dim, vocab_size, seed=layers)
    code, cap = 1000, 1000 + int(share * sum(tensor.numel() for tensor in state.values()))
    config = replace(CONFIG, fit=FitConfig(target_bytes=cap), lqer=LqerConfig(top_k=1, group=16))
    run = run_quantization(state, hessians, model, config, TOKENIZER, codec, lambda: code)
    blob = encode_model(run.quantized.tensors, model, vocab_size, run.config, TOKENIZER, codec)
    assert cap - LEAST_SLACK <= len(blob) + code <= cap
    assert fit_metrics(run)["fit_bytes_model"] == len(blob)
    header, tensors = unpack_model(blob)  # what was chosen ships, and says again the same
    assert build(QuantizeConfig, header["quantize"], "quantize") == run.config
    backwards = dict(reversed(state.items()))  # as a file and a model differ
    again = run_quantization(backwards, hessians, model, config, TOKENIZER, codec, lambda: code)
    assert again.config == run.config
    again = run_quantization(
        state, hessians, model, replace(run.config, fit=FitConfig()), TOKENIZER, codec, lambda: code
    )
    assert all(torch.equal(again.quantized.tensors[key], tensor) for key, tensor in tensors.items())


STATE = {
    "tok_emb.weight": torch.randn(256, 64, generator=torch.Generator().manual_seed(0)),
    "blocks.0.mlp.fc.weight": torch.randn(128, 64, generator=torch.Generator().manual_seed(1)),
    "gain": torch.ones(64),
}
SHAPES = {name: tuple(tensor.shape) for name, tensor in STATE.items()}
REACHES = dict.fromkeys(SHAPES, REACH)
EMPTY = Quantized({}, [])


def ideal(scheme, waste=1.0, fixed=0):
    """Bytes by the rate model, `waste` times over."""
    grids = {name: rule.grid for name, rule in resolve(SHAPES, scheme).items() if rule.grid}
    return fixed + round(waste * sum(math.prod(SHAPES[n]) * bits_per_code(grid) / 8 for n, grid in grids.items()))


@pytest.mark.parametrize(("waste", "fixed"), [(1.0, 0), (0.7, 2000), (1.5, 0), (1.1, 5000)])
@pytest.mark.parametrize("limit", [9000, 12_000, 14_000])
def test_the_search_finds_the_limit_of_any_codec_near_the_rate_model(waste, fixed, limit):
    done = fit(STATE, CONFIG, limit, lambda scheme: EMPTY, lambda _, scheme: ideal(scheme, waste, fixed))
    assert limit - LEAST_SLACK <= done.bytes_model <= limit
    assert len(done.trials) <= TRIALS
    assert done.bytes_model == ideal(done.config, waste, fixed)


def test_large_models_end_within_a_permille():
    state = {name: torch.randn(8 * len(tensor), 64) for name, tensor in STATE.items() if tensor.ndim == 2}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}

    def size(_, scheme):
        grids = {name: rule.grid for name, rule in resolve(shapes, scheme).items() if rule.grid}
        return 40_000 + round(100 * sum(math.prod(shapes[n]) * bits_per_code(grid) / 8 for n, grid in grids.items()))

    done = fit(state, CONFIG, 8_000_000, lambda scheme: EMPTY, size)
    assert 8_000_000 * (1 - SLACK) <= done.bytes_model <= 8_000_000


def test_a_codec_that_cannot_shrink_further_is_an_error_and_one_that_cannot_grow_is_none():
    with pytest.raises(InputError, match=r"no clip brings the model to 9,000 bytes \(least: 9,001\)"):
        fit(STATE, CONFIG, 9000, lambda scheme: EMPTY, lambda *_: 9001)
    done = fit(STATE, CONFIG, 10**6, lambda scheme: EMPTY, lambda _, scheme: ideal(scheme))
    grids = [rule.grid for rule in resolve(SHAPES, done.config).values() if rule.grid]
    assert {grid.bits for grid in grids} == {8}
    assert all(grid.k_sigma == pytest.approx(REACH) for grid in grids)  # finer ones would clip


def test_the_limit_is_never_exceeded_by_a_codec_with_noise():
    generator = torch.Generator().manual_seed(3)

    def size(_, scheme):
        return ideal(scheme) + int(torch.randint(-40, 40, (), generator=generator))

    for limit in range(9000, 12_000, 300):
        assert fit(STATE, CONFIG, limit, lambda scheme: EMPTY, size).bytes_model <= limit


def test_one_factor_scales_every_step_and_widths_follow():
    config = replace(CONFIG, tensors=(TensorConfig(name="tok_emb.weight", k_times=1.5),))
    for factor in (0.4, 0.8, 1.0, 1.3, 4.0):
        chosen = resolve(SHAPES, scaled(config, SHAPES, REACHES, factor))
        for name, rule in resolve(SHAPES, config).items():
            if rule.grid:
                grid = chosen[name].grid
                assert grid.k_sigma / grid.clip == pytest.approx(factor * rule.grid.k_sigma / rule.grid.clip, rel=1e-4)
                assert grid.k_sigma >= REACH
                narrower = GridConfig(bits=grid.bits - 1).clip
                assert grid.bits == 2 or narrower * grid.k_sigma / grid.clip < REACH


def test_grids_hold_the_weights_or_have_eight_bits():
    assert grid_at(0.371, 8.0) == GridConfig(bits=6, k_sigma=0.371 * 31)
    assert grid_at(0.371, 12.0).bits == 7
    assert grid_at(0.01, 20.0) == GridConfig(bits=8, k_sigma=20.0)
    assert grid_at(9.0, 8.0).bits == 2


def test_targets_must_make_sense():
    assert to_dict(QuantizeConfig())["fit"] == {"target_bytes": None, "code_bytes": None}
    for values in ({"target_bytes": 0}, {"target_bytes": 10, "code_bytes": 10}, {"code_bytes": -1}):
        with pytest.raises(InputError, match="_bytes` is"):
            FitConfig(**values)
