"""What a run will cost, before it is run: parameters, FLOPs, steps, bytes.

Multiply-adds count 2; training is 3 forward passes; norms, gates, softmax and the embedding lookup are left out.
Attention at full causal rows of T tokens meets T / 2 keys on average.
"""

import math
import re
from typing import NamedTuple

from pgolf.model.config import ModelConfig
from pgolf.model.wiring import wire
from pgolf.quant.artifact import parameter_shapes
from pgolf.quant.rate import predicted_bytes
from pgolf.sections import Sections


class Plan(NamedTuple):
    """Predictions for one params file and vocabulary."""

    parameters: int
    forward_flops: tuple[int, int]
    """Per token, without and with recurrence."""
    steps: int | None
    """None where the budget is wall-clock and the speed is not known."""
    tokens: int | None
    train_flops: int | None
    """Of the whole run."""
    bytes_model: int
    bytes_cap: int


def forward_flops(config: ModelConfig, vocab_size: int, context: float, looped: bool) -> int:
    """Forward FLOPs per token, with `context` keys attended to on average."""
    maps = 2 if config.attention == "differential" else 1
    weights, outside = [0] * config.layers, 0
    for name, shape in parameter_shapes(config, 1).items():
        if found := re.match(r"blocks\.(\d+)\.(attn|mlp)\.[\w.]+\.weight$", name):
            weights[int(found[1])] += math.prod(shape)
        elif name.endswith(".proj.weight"):  # of hashed and value embeddings
            outside += math.prod(shape)
    wiring = wire(config, config.loop_runs if looped else 1)
    layers = config.stack_runs * (wiring.encoder + wiring.decoder)
    blocks = sum(2 * weights[layer] + 4 * maps * config.dim * context for layer in layers)
    return round(blocks + 2 * outside + 2 * config.dim * vocab_size)


def make_plan(sections: Sections, vocab_size: int, tokens_per_second: float | None = None) -> Plan:
    """Predict a run; `tokens_per_second` is the training speed that turns a wall-clock budget into steps."""
    config, train = sections.model, sections.train
    shapes = parameter_shapes(config, vocab_size)
    flops = tuple(forward_flops(config, vocab_size, train.seq_len / 2, looped) for looped in (False, True))
    steps, tokens, total = train.steps, None, None
    if train.seconds is not None and tokens_per_second is not None:
        steps = int((train.seconds - train.reserve_seconds) * tokens_per_second / train.batch_tokens)
    if steps is not None:
        tokens = steps * train.batch_tokens
        mean = train.loop_at * flops[0] + (1 - train.loop_at) * flops[1]
        total = round(3 * mean * tokens)
    return Plan(
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        forward_flops=(flops[0], flops[1]),
        steps=steps,
        tokens=tokens,
        train_flops=total,
        bytes_model=predicted_bytes(shapes, sections.quantize),
        bytes_cap=sections.verify_size.cap_bytes,
    )
