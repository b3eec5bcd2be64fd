"""What a run will cost, before it is run: parameters, FLOPs, steps, bytes.

Training is 3 forward passes. Attention at full causal rows of T tokens meets T / 2 keys on average.
"""

import math
from typing import NamedTuple

from pgolf.model.flops import forward_flops
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
        plain = train.loop_at * train.loop_cost / (1 + train.loop_at * (train.loop_cost - 1))  # of the steps
        mean = plain * flops[0] + (1 - plain) * flops[1]
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
