"""`pgolf prequant`: pre-quantization test-time training (PR 1364, 1735, 1738, 1758, 1807). Not valid for records.

The averaged weights are trained on the validation tokens, several epochs, before they are quantized. So what is scored
was fitted to all that it is scored on: every ruling on it was against (PR 1376, 1485, 1517). It is here to be measured
and to be recognised. The checkpoint that it makes says what it is; so do the metrics of the stage that adopts it, the
gate and `pgolf audit`.

    epoch e of E, rate  lr (f + (1 - f) (1 + cos(pi e / E)) / 2),  f the floor
    chunks of K targets in stream order, one step of AdamW without decay on each, gradient clipped

The guard of PR 1807 stops before an epoch where the rest of the plan would not fit: elapsed + longest epoch x epochs
left > budget. (There 150 s stand for the longest epoch, and 600 s for the budget.)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.errors import InputError
from pgolf.evaluate.chunk_ttt import Learner, rate_groups, rows_of
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig
from pgolf.model.gpt import GPT


@dataclass(frozen=True, kw_only=True, slots=True)
class PrequantConfig:
    """Defaults are PR 1735's."""

    epochs: int = 21
    lr: float = 5e-4
    floor: float = 0.1
    """Share of the rate that the cosine ends at."""
    freeze_blocks: int = 2
    freeze_embedding: bool = True
    chunk_tokens: int = 32_768
    grad_clip: float = 1.0
    seconds: float = 600.0
    """Budget of the guard."""

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "chunk_tokens", "grad_clip", "seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be greater than 0")


def fits(elapsed: float, longest: float, left: int, budget: float) -> bool:
    """Whether so many epochs more are expected to end within the budget, all in seconds."""
    return elapsed + longest * left <= budget


def prequant_ttt(
    model: GPT,
    tokens: NDArray[np.uint16],
    config: PrequantConfig,
    windows: EvaluateConfig,
    seconds: Callable[[], float],
) -> Iterator[tuple[int, float]]:
    """Train the model in place on a stream [n]; gives after each epoch its number, from 1, and its mean loss in nats.

    The losses are those of training: each chunk's before its own step. `seconds` says how many have passed.
    """
    settings = ChunkTTTConfig(
        chunk_tokens=config.chunk_tokens, rows_per_step=max(config.chunk_tokens // windows.seq_len, 1),
        grad_clip=config.grad_clip, freeze_blocks=config.freeze_blocks, freeze_embedding=config.freeze_embedding,
    )  # fmt: skip
    rows = config.chunk_tokens // windows.seq_len
    if not rows or len(tokens) <= config.chunk_tokens:
        raise InputError(
            f"`chunk_tokens` is {config.chunk_tokens}: it must hold a row of {windows.seq_len} tokens, and the "
            f"{len(tokens)} tokens of validation a chunk"
        )
    learner = Learner(model, settings, max(windows.batch_tokens // windows.seq_len, 1), windows.isolate_documents)
    learner.optimizer = torch.optim.AdamW(rate_groups(model, learner.parameters, False), config.lr, weight_decay=0.0)
    longest = 0.0
    for epoch in range(config.epochs):
        begun = seconds()
        if not fits(begun, longest, config.epochs - epoch, config.seconds):
            return
        cosine = 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        rate, losses = config.lr * (config.floor + (1 - config.floor) * cosine), list[float]()
        for first in range(0, len(tokens) - config.chunk_tokens, config.chunk_tokens):
            data = rows_of(tokens, first, rows, windows.seq_len)
            with torch.no_grad():
                losses.append(float(learner.losses(data).mean()))
            learner.train(data, rate, 1)
        longest = max(longest, seconds() - begun)
        yield epoch + 1, sum(losses) / len(losses)
