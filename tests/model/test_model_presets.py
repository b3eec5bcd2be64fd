"""The models of the published systems: parameter counts, first losses, and what their constants must be."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from pgolf.config import build
from pgolf.model.config import HashConfig, ModelConfig, ValueEmbedConfig
from pgolf.model.gpt import GPT
from pgolf.params import read_params

PRESETS = Path(__file__).parents[2] / "presets"
COUNTS = {
    "pr401": 26_993_756, "pr635": 26_809_543, "pr1520": 35_989_681, "pr1807": 35_944_536, "pr2071": 35_989_658,
    "record-1493": 35_944_536, "record-1855": 35_945_671,
}  # fmt: skip


def preset(name):
    values = read_params(PRESETS / f"{name}.yaml")
    return build(ModelConfig, values["model"], "model"), values["tokenize"]["vocab_size"]


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_the_published_one(name):
    with torch.device("meta"):
        model = GPT(*preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


def test_parameter_count_of_pr_549():
    """PR 401 with a smaller bigram table; the count checks value embedding and bigram by themselves."""
    config, vocab_size = preset("pr401")
    with torch.device("meta"):
        model = GPT(dataclasses.replace(config, bigram=HashConfig(rows=1536)), vocab_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_928_220


@pytest.mark.parametrize("name", COUNTS)
def test_first_loss_is_the_logarithm_of_the_vocabulary(name):
    """Every output projection is zero; the model is narrow, its vocabulary the published one."""
    config, vocab_size = preset(name)
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(config, dim=64, mlp_mult=2.0, rope_dims=8), vocab_size).begin_training()
    model.prepare(256)
    ids = torch.randint(vocab_size, (1, 257))
    loss = model.losses(ids[:, :-1], ids[:, 1:]).mean().item()
    assert loss == pytest.approx(math.log(vocab_size), rel=1e-3)


def test_wider_queries_cost_what_the_study_says():
    """H rows of Q per layer headwise, 2.9 M weights elementwise."""
    counts = {}
    for gate in ("none", "headwise", "elementwise"):
        with torch.device("meta"):
            model = GPT(ModelConfig(attn_gate=gate), 8192)
        counts[gate] = sum(parameter.numel() for parameter in model.parameters())
    assert counts["headwise"] - counts["none"] == 11 * 8 * 512
    assert counts["elementwise"] - counts["none"] == 11 * 512 * 512


def test_constants_of_the_tables_rows():
    """What differs between the systems."""
    models = {name: preset(name)[0] for name in COUNTS}
    rows = {name: (m.mlp_mult, m.leaky_slope, m.xsa_layers, m.qk_gain, m.ln_scale) for name, m in models.items()}
    assert rows == {
        "pr401": (3, 0, 4, 1.5, True), "pr635": (3, 0.5, 4, 1.5, False), "pr1520": (4, 0.5, 11, 5.25, True),
        "pr1807": (4, 0.5, 11, 5.25, True), "pr2071": (4, 0.5, 11, 5, True), "record-1493": (4, 0.5, 11, 5.25, True),
        "record-1855": (4, 0.5, 11, 5, True),
    }  # fmt: skip
    depth = {name: (m.parallel, m.skips, m.loop_runs, m.softcap, m.embed_std) for name, m in models.items()}
    assert depth == {
        "pr401": ("none", "plain", 1, 30, 0.005), "pr635": ("none", "plain", 1, 30, 0.005),
        "pr1520": ("merge", "gated", 3, 30, 0.005), "pr1807": ("gptj", "gated", 3, 30, 0.005),
        "pr2071": ("lanes", "gated", 3, 30, 0.005), "record-1493": ("gptj", "gated", 3, 30, 0.005),
        "record-1855": ("lanes", "gated", 3, 30, 0.005),
    }  # fmt: skip
    gates = {name: (m.attn_gate, m.smear, m.smear_mask) for name, m in models.items()}
    assert gates["pr401"] == ("none", "vector", False)
    assert gates["pr635"] == ("per_head", "vector", False)
    assert gates["pr1520"] == ("per_head", "none", True)
    assert gates["pr2071"] == ("dense", "none", True)
    assert gates["record-1855"] == ("sparse", "window", True)
    assert models["pr1807"] == models["record-1493"]
    gain = 1 / math.sqrt(2 * 11)
    assert models["pr401"].bigram == HashConfig(rows=2048, dim=128, scale=0.05, gain=pytest.approx(gain))
    assert models["pr401"].value_embed == ValueEmbedConfig(last=2, dim=128, scale=0.1, gain=pytest.approx(gain))
    assert models["pr635"].bigram == HashConfig(rows=1536, dim=128, scale=0.05, gain=1)
    assert (models["pr635"].value_residual, models["pr635"].attn_gate_bias) == ("learned", 4)
    assert (models["pr1520"].attn_gate_bias, models["pr1520"].norm_pct, models["pr1520"].parallel_from) == (
        2.94,
        0.99,
        7,
    )
    assert (models["pr2071"].attn_gate_std, models["pr2071"].parallel_from) == (0.01, 8)
