"""The evaluation of a shipped artifact: the score that a submission reports, and the scores to compare it with.

`evaluate` is all that an evaluation clock has to hold. `references` says what quantization cost and what test-time
training brought; nothing in the score needs it.
"""

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf import ranks
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import Places, Score, Scored, summarize, token_losses, windows_for
from pgolf.evaluate.updates import Update
from pgolf.model.gpt import GPT

Progress = Callable[[str, int, int], None]
"""Gets the phase, its steps done and its steps in all."""
Seconds = Callable[[], float]
"""The evaluation clock."""


class Evaluation(NamedTuple):
    """The score of one model on the validation stream."""

    score: Score
    """The configured windows, test-time training and cache: the score of the run."""
    losses: NDArray[np.float32]
    """Nats per target."""
    updates: list[Update]
    """What test-time training changed when; empty without."""
    seconds: NDArray[np.float32] | None = None
    """Evaluation clock when the batch of each target was scored; None without test-time training, and NaN where only a
    cache is on."""


class References(NamedTuple):
    """Scores of the same model without the tricks of evaluation."""

    plain: Score
    """Non-overlapping windows, no adaptation: what quantization did."""
    unadapted: Score | None
    """The configured windows without test-time training and cache; None where nobody asked (`measure_gain`)."""
    plain_losses: NDArray[np.float32]
    """Nats per target of the plain score."""
    unadapted_losses: NDArray[np.float32] | None = None
    """Nats per target of the unadapted score, where it was measured beside test-time training or a cache."""


def at_temperature(model: GPT, config: EvaluateConfig) -> contextlib.AbstractContextManager[None]:
    """Within, the model scores at the temperature of `config`."""
    if config.temperature == 1:
        return contextlib.nullcontext()
    from pgolf.evaluate.temperature import tempered

    return tempered(model, config.temperature)


def warm_up(model: GPT, config: EvaluateConfig) -> None:
    """Compile what `evaluate` will run, on random tokens: nothing that the clock of an evaluation must hold."""
    if config.ttt in ("lora", "phased"):
        from pgolf.evaluate.compiled import back_end
        from pgolf.evaluate.warm_up import compile_adaptation

        if backend := back_end(config, model.tok_emb.weight.device):
            with at_temperature(model, config):
                compile_adaptation(model, config, backend)


def evaluate(
    model: GPT,
    tokens: NDArray[np.uint16],
    token_bytes: NDArray[np.integer],
    config: EvaluateConfig,
    report: Progress = lambda phase, done, total: None,
    now: Seconds | None = None,
) -> Evaluation:
    """Score a stream [n] with the bytes charged to each token [n]; every target counts exactly once."""
    if not config.adapts:
        losses = _unadapted(model, tokens, config, config.stride, report)
        return Evaluation(summarize(losses, token_bytes[1:]), losses, [])
    with at_temperature(model, config):
        losses, updates, seconds = _adapted(model, tokens, token_bytes, config, report, now)
    return Evaluation(summarize(losses, token_bytes[1:]), losses, updates, seconds)


def _adapted(
    model: GPT,
    tokens: NDArray[np.uint16],
    token_bytes: NDArray[np.integer],
    config: EvaluateConfig,
    report: Progress,
    now: Seconds | None,
) -> tuple[NDArray[np.float32], list[Update], NDArray[np.float32]]:
    """Losses with test-time training or a cache, its updates, and when each target was scored."""
    seconds = np.full(len(tokens) - 1, np.nan, dtype=np.float32)
    if config.ttt == "none":
        from pgolf.evaluate.neural_cache import window_losses

        return window_losses(model, tokens, config, lambda done, total: report("cache", done, total)), [], seconds
    unit = "chunk" if config.ttt == "chunk" else "document"
    scored = _running(f"{config.ttt} {unit}", token_bytes[1:], report, seconds, now)
    if config.ttt == "chunk":
        from pgolf.evaluate.chunk_ttt import chunk_ttt

        losses, updates = chunk_ttt(model, tokens, windows_for(tokens, config, config.stride), config, scored)
        return losses, updates, seconds
    from pgolf.evaluate.document_ttt import document_ttt

    losses, updates = document_ttt(model, tokens, config, scored, forecast=now is not None)
    return losses, updates, np.fmax.reduce(ranks.collect(seconds))  # each rank scored other documents


def references(
    model: GPT,
    tokens: NDArray[np.uint16],
    token_bytes: NDArray[np.integer],
    config: EvaluateConfig,
    result: Evaluation,
    report: Progress = lambda phase, done, total: None,
) -> References:
    """What to compare `result` with; passes that would repeat it are skipped."""

    def losses(stride: int) -> NDArray[np.float32]:
        if not config.adapts and stride == config.stride:
            return result.losses
        return _unadapted(model, tokens, config, stride, report)

    plain_losses = losses(config.seq_len)
    unadapted = plain = summarize(plain_losses, token_bytes[1:])
    if config.stride < config.seq_len:
        if config.adapts and not config.measure_gain:
            return References(plain, None, plain_losses)
        unadapted = summarize(found := losses(config.stride), token_bytes[1:])
        return References(plain, unadapted, plain_losses, found if config.adapts else None)
    return References(plain, unadapted, plain_losses, plain_losses if config.adapts else None)


def _unadapted(
    model: GPT, tokens: NDArray[np.uint16], config: EvaluateConfig, stride: int, report: Progress
) -> NDArray[np.float32]:
    """Losses of all targets under windows of this stride."""
    phase = "sliding" if stride < config.seq_len else "plain"
    windows = windows_for(tokens, config, stride)
    with at_temperature(model, config):
        return token_losses(model, tokens, windows, config.batch_tokens, lambda done, total: report(phase, done, total))


def _running(
    what: str, target_bytes: NDArray[np.integer], report: Progress, seconds: NDArray[np.float32], now: Seconds | None
) -> Scored:
    """A report per batch that says the BPB so far, of this rank, and notes when each target was scored."""
    bits, text = 0.0, 0

    def scored(losses: NDArray[np.float32], places: Places, remark: str, done: int, total: int) -> None:
        nonlocal bits, text
        bits += float(losses.sum(dtype=np.float64)) / math.log(2)
        text += int(target_bytes[places].sum(dtype=np.int64))
        if now:
            seconds[places] = now()
        kind, _, unit = what.partition(" ")
        parts = [f"{kind} TTT", f"{bits / max(text, 1):.4f} BPB", remark, unit]
        report(", ".join(part for part in parts if part), done, total)

    return scored
