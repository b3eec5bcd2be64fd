"""The whole model against its slow float64 twin: losses, logits and the gradient of every parameter."""

import math

import pytest
import torch
from model_twin import BOS, Twin

from pgolf.model.attention import Segments
from pgolf.model.config import HashConfig, ModelConfig, ValueEmbedConfig
from pgolf.model.gpt import GPT

VOCAB, LENGTH = 64, 14
DOCUMENTS = (0, 5, 6)

SMALL = {"dim": 32, "heads": 4, "kv_heads": 2, "rope_dims": 4, "softcap": 3.0, "mlp_mult": 2.0, "leaky_slope": 0.3}
LOOPED = {"layers": 6, "loop_start": 2, "loop_end": 3, "loop_runs": 2, "parallel_from": 4}
FLAT = {"layers": 3, "loop_runs": 1, "xsa_layers": 2, "parallel": "none"}


def looped(**changes):
    """Six layers, two of them twice, the last two parallel."""
    return ModelConfig(**(SMALL | LOOPED | {"xsa_layers": 6} | changes))


def flat(**changes):
    """Three sequential layers."""
    return ModelConfig(**(SMALL | FLAT | changes))


CONFIGS = {
    "odd virtual list, parallel tail": ModelConfig(**SMALL, **LOOPED, xsa_layers=2),
    "three runs, one layer": flat(loop_start=1, loop_end=1, loop_runs=3, xsa_layers=3),
    "all parallel, no recurrence": flat(layers=4, parallel="gptj", parallel_from=0, xsa_layers=0, ln_scale=False),
    "two lanes, smear and sparse gate": looped(
        parallel="lanes", attn_gate="sparse", attn_gate_scale=0.5, smear="window", gate_window=5
    ),
    "lanes from the first decoder layer, no recurrence": flat(
        layers=4, parallel="lanes", parallel_from=2, xsa_layers=4, smear="window", smear_mask=False
    ),
    "the layers of PR 1855": ModelConfig(
        dim=32,
        heads=4,
        kv_heads=2,
        rope_dims=6,
        softcap=2.0,
        mlp_mult=1.0,
        qk_gain=5.0,
        parallel="lanes",
        parallel_from=8,
        attn_gate="sparse",
        attn_gate_scale=0.5,
        smear="window",
    ),
    "the layers of PR 1493": ModelConfig(
        dim=32, heads=4, kv_heads=2, rope_dims=6, softcap=2.0, mlp_mult=1.0, rope_base=500.0
    ),
    "scalar merge, gate per head": looped(parallel="merge", attn_gate="per_head", attn_gate_bias=2.94),
    "sequential lanes": looped(parallel="lanes_sequential", lane_init=1.1**0.5),
    "plain skips, bigram, vector smear, learned value residual": flat(
        layers=4, skips="plain", bigram=HashConfig(rows=11, dim=6), smear="vector", value_residual="learned"
    ),
    "trigram, raw vector smear, value embedding": flat(
        trigram=HashConfig(rows=13, dim=5),
        smear="raw_vector",
        smear_mask=False,
        value_embed=ValueEmbedConfig(last=2, dim=7),
    ),
    "fixed value residual with value embedding in every layer": looped(
        value_residual="fixed", value_residual_alpha=0.3, value_embed=ValueEmbedConfig(last=6, dim=5)
    ),
    "gated value residual, lanes": looped(value_residual="gated", parallel="lanes"),
    "dense gate": flat(attn_gate="dense"),
    "window gate": flat(attn_gate="window", gate_window=7),
    "window gate of the query, MLP gate": flat(attn_gate="window", attn_gate_query=True, mlp_gate=True, gate_window=7),
    "headwise gate": flat(attn_gate="headwise"),
    "elementwise gate": flat(attn_gate="elementwise"),
    "token gate, parallel": looped(token_gate=True),
    "differential": flat(attention="differential"),
    # without XSA, which leaves rounding noise at the first token, blown up by this norm
    "Peri-LN, parallel, MLP gate": looped(norm="peri", mlp_gate=True, xsa_layers=0),
    "HybridNorm": flat(norm="hybrid", value_residual="learned"),
    "Star-ReLU": flat(activation="star_relu"),
    "SwiGLU": flat(activation="swiglu"),
    "Star-ReLU SwiGLU": flat(activation="star_swiglu"),
    "structured FFN": flat(mlp_rank=0.5, mlp_blocks=4),
    "NTK": flat(rope_dims=8, rope_base=50.0, rope_scaling="ntk", rope_factor=2.5),
    "YaRN": flat(rope_dims=8, rope_base=50.0, rope_scaling="yarn", rope_factor=3.0, rope_length=200),
    "shared middle layer with positions": flat(
        layers=4, loop_start=1, loop_end=2, loop_runs=3, loop_pos="orthogonal", xsa_layers=4
    ),
    "shared stack with positions": flat(stack_runs=3, loop_pos="normal", value_residual="gated"),
}


def randomise(model: GPT) -> None:
    """Random values in every parameter, so that no identity at initialisation hides a wrong wire."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter.data)
        if name.endswith("resid_mix"):
            noise = torch.tensor([[0.8], [0.4]]) + 0.3 * noise
        elif name.endswith("scale") or name == "skip_weights":
            noise = 1 + 0.3 * noise
        elif name.endswith("q_gain"):
            noise = 2 + 0.5 * noise
        elif name == "tok_emb.weight":
            noise = 0.4 * noise
        elif "lambda" in name or name in ("lane_merge", "ve_layer_scales") or parameter.ndim == 0:
            noise = 0.9 + 0.3 * noise
        elif parameter.ndim == 2 and name not in ("skip_gates", "loop_pos"):
            noise = noise / math.sqrt(parameter.size(1))
        parameter.data.copy_(noise)


CASES = [(name, config.loop_runs, True) for name, config in CONFIGS.items()]
CASES += [(name, runs, False) for name, config in CONFIGS.items() for runs in range(1, config.loop_runs)]


@pytest.mark.parametrize(("name", "runs", "packed"), CASES)
def test_forward_losses_and_gradients_equal_the_twin(name, runs, packed):
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = GPT(config, VOCAB)
    randomise(model)
    model.prepare(LENGTH)
    model.runs = runs
    ids, targets = torch.randint(BOS + 1, VOCAB, (2, 1, LENGTH))
    ids[0, DOCUMENTS] = BOS  # dense rows cross documents, but the smear does not
    documents = DOCUMENTS if packed else [0]
    segments = Segments(torch.tensor([*DOCUMENTS, *[LENGTH] * 3], dtype=torch.int32), 8) if packed else None

    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    logits, losses = Twin(config, weights).losses(ids[0], targets[0], runs, documents)
    losses.mean().backward()
    mine = model.losses(ids, targets, segments)
    mine.mean().backward()

    assert losses.std() > 0.1  # otherwise the comparison is empty
    assert mine.dtype == torch.float32
    assert mine.shape == targets.shape
    torch.testing.assert_close(model(ids, segments)[0].double(), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(mine[0].double(), losses, rtol=0, atol=1e-4)
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wanted = torch.zeros_like(weights[name]) if expected is None else expected
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize("name", ["odd virtual list, parallel tail", "two lanes, smear and sparse gate"])
def test_every_parameter_matters_in_the_comparison(name):
    """With recurrence, each tensor has a gradient above the tolerance, so an error in its use would show."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = GPT(config, VOCAB)
    randomise(model)
    model.prepare(LENGTH)
    ids, targets = torch.randint(VOCAB, (2, 1, LENGTH))
    model.losses(ids, targets).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-3, name
