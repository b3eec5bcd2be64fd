"""The evaluation of a shipped artifact: decode, score plainly, score by the chosen windows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import Score, summarize, token_losses, windows_for
from pgolf.model.gpt import GPT

Progress = Callable[[str, int, int], None]


class Evaluation(NamedTuple):
    """Scores of one model on the validation stream."""

    plain: Score
    """Non-overlapping windows: what quantization did, before any trick of evaluation."""
    final: Score
    """The configured windows: the score of the run."""
    losses: NDArray[np.float32]
    """Nats per target of the final score."""


def evaluate(
    model: GPT,
    tokens: NDArray[np.uint16],
    token_bytes: NDArray[np.integer],
    config: EvaluateConfig,
    report: Progress = lambda phase, done, total: None,
) -> Evaluation:
    """Score a stream [n] with the bytes charged to each token [n]; every target counts exactly once."""

    def score(phase: str, stride: int) -> tuple[Score, NDArray[np.float32]]:
        windows = windows_for(tokens, config, stride)
        losses = token_losses(model, tokens, windows, config.batch_tokens, lambda d, t: report(phase, d, t))
        return summarize(losses, token_bytes[1:]), losses

    plain, losses = score("plain", config.seq_len)
    final = plain
    if config.stride < config.seq_len:
        final, losses = score("sliding", config.stride)
    return Evaluation(plain, final, losses)
