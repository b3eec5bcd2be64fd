"""Predictions against the published accounting of FLOPs, parameters and bytes."""

import dataclasses
from pathlib import Path

import pytest

from pgolf.model.config import HashConfig, ModelConfig, ValueEmbedConfig
from pgolf.model.flops import forward_flops
from pgolf.model.gpt import GPT
from pgolf.plan import make_plan
from pgolf.presets import apply_preset
from pgolf.sections import load_sections

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sections(tmp_path):
    def load(*presets):
        path = tmp_path / "params.yaml"
        path.write_bytes((ROOT / "params.yaml").read_bytes())
        for name in presets:
            apply_preset(path, name, folder=ROOT / "presets")
        return load_sections(path)

    return load


def test_forward_flops_are_the_published_ones_without_attention():
    """The published layer has 96 gate weights more; 11 layers 63.44 M, 17 virtual 98.04 M, head 8.39 M."""
    config, gate = ModelConfig(), 2 * 96
    assert forward_flops(config, 8192, 0, looped=False) + 11 * gate == pytest.approx(63.44e6 + 8.39e6, abs=0.01e6)
    assert forward_flops(config, 8192, 0, looped=True) + 17 * gate == pytest.approx(98.04e6 + 8.39e6, abs=0.01e6)
    layer = forward_flops(ModelConfig(loop_runs=1), 8192, 0, looped=True) - 2 * 512 * 8192
    assert layer / 11 + gate == 2 * 2_883_680


@pytest.mark.parametrize(("context", "plain", "looped"), [(0, 215.5, 319.3), (600, 256.0, 382.0), (1024, 284.7, 426.3)])
def test_training_flops_are_the_published_ones(context, plain, looped):
    config = ModelConfig()
    assert 3 * forward_flops(config, 8192, context, looped=False) / 1e6 == pytest.approx(plain, abs=0.1)
    assert 3 * forward_flops(config, 8192, context, looped=True) / 1e6 == pytest.approx(looped, abs=0.1)


def test_flops_grow_with_context_by_the_attention_products():
    config = ModelConfig(layers=4, dim=64, heads=4, kv_heads=2, rope_dims=8, xsa_layers=0, parallel_from=None,
                         loop_start=0, loop_end=1, loop_runs=2)  # fmt: skip
    for looped, layers in ((False, 4), (True, 6)):
        grown = forward_flops(config, 100, 33, looped) - forward_flops(config, 100, 0, looped)
        assert grown == layers * 2 * (2 * 64 * 33)  # q k^T and p v, each d multiply-adds per key


def test_flops_count_every_matrix_that_a_technique_adds():
    """Two per weight and token; the table of a hash is a lookup; another softmax map doubles attention."""
    plain = ModelConfig(layers=4, dim=64, heads=4, kv_heads=2, rope_dims=8, xsa_layers=0, parallel="none", loop_runs=1)

    def added(**changes):
        changed = dataclasses.replace(plain, **changes)
        return forward_flops(changed, 100, 10, looped=True) - forward_flops(plain, 100, 10, looped=True)

    assert added(attn_gate="elementwise") == 2 * 4 * 64 * 64
    assert added(activation="swiglu") == 2 * 4 * (3 * 168 - 2 * 256) * 64
    assert added(mlp_rank=0.5, mlp_blocks=4) == 2 * 4 * (32 * (64 + 256) - 64 * 256 - 3 * 64 * 64)
    assert added(bigram=HashConfig(rows=999, dim=16)) == 2 * 16 * 64
    assert added(value_embed=ValueEmbedConfig(last=2, dim=16)) == 2 * 16 * 32
    assert added(attention="differential") == 4 * 4 * 64 * 10
    head = 2 * 64 * 100
    assert added(stack_runs=3) == 2 * (forward_flops(plain, 100, 10, looped=True) - head)


def test_record_1493_has_the_published_parameters_and_fits(sections):
    plan = make_plan(sections("record-1493"), 8192)
    assert plan.parameters == 35_944_536
    assert plan.steps is plan.tokens is plan.train_flops is None
    assert plan.bytes_cap == 16_000_000
    assert 15.0e6 < plan.bytes_model < plan.bytes_cap
    flops = [forward_flops(ModelConfig(), 8192, 1024, looped) for looped in (False, True)]
    assert list(plan.forward_flops) == flops


def test_budget_in_steps_gives_tokens_and_flops(sections):
    chosen = sections("mini")
    plan = make_plan(chosen, 512)
    assert plan.parameters == sum(parameter.numel() for parameter in GPT(chosen.model, 512).parameters())
    assert (plan.steps, plan.tokens) == (12, 12 * 1024)
    plain, looped = plan.forward_flops
    assert looped > plain
    expected = 3 * 12 * 1024 * (0.35 * plain + 0.65 * looped)
    assert plan.train_flops == pytest.approx(expected, rel=1e-9)
    assert plan.forward_flops == tuple(forward_flops(chosen.model, 512, 64, on) for on in (False, True))


def test_a_wall_clock_budget_and_a_speed_give_steps(sections):
    chosen = sections("record-1493")
    assert make_plan(chosen, 8192).steps is None
    plan = make_plan(chosen, 8192, tokens_per_second=7.0e6)
    assert plan.steps == int(588 * 7.0e6 / 786_432)
    assert plan.tokens == plan.steps * 786_432
