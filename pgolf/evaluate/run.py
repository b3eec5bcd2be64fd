"""The evaluation of a shipped artifact: the score that a submission reports, and the scores to compare it with.

`evaluate` is all that an evaluation clock has to hold. `references` says what quantization cost and what test-time
training brought; nothing in the score needs it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import Score, summarize, token_losses, windows_for
from pgolf.evaluate.updates import Update
from pgolf.model.gpt import GPT

Progress = Callable[[str, int, int], None]
"""Gets the phase, its steps done and its steps in all."""


class Evaluation(NamedTuple):
    """The score of one model on the validation stream."""

    score: Score
    """The configured windows and test-time training: the score of the run."""
    losses: NDArray[np.float32]
    """Nats per target."""
    updates: list[Update]
    """What test-time training changed when; empty without."""


class References(NamedTuple):
    """Scores of the same model without the tricks of evaluation."""

    plain: Score
    """Non-overlapping windows, no adaptation: what quantization did."""
    unadapted: Score | None
    """The configured windows without test-time training; None where nobody asked (`measure_gain`)."""
    plain_losses: NDArray[np.float32]
    """Nats per target of the plain score."""
    unadapted_losses: NDArray[np.float32] | None = None
    """Nats per target of the unadapted score, where it was measured beside test-time training."""


def evaluate(
    model: GPT,
    tokens: NDArray[np.uint16],
    token_bytes: NDArray[np.integer],
    config: EvaluateConfig,
    report: Progress = lambda phase, done, total: None,
) -> Evaluation:
    """Score a stream [n] with the bytes charged to each token [n]; every target counts exactly once."""
    updates: list[Update] = []
    if config.ttt == "none":
        losses = _unadapted(model, tokens, config, config.stride, report)
    elif config.ttt == "chunk":
        from pgolf.evaluate.chunk_ttt import chunk_ttt

        windows = windows_for(tokens, config, config.stride)
        losses, updates = chunk_ttt(model, tokens, windows, config, _running_bpb(token_bytes[1:], report))
    else:
        from pgolf.evaluate.document_ttt import document_ttt

        losses, updates = document_ttt(model, tokens, config, _documents_bpb(config.ttt, token_bytes[1:], report))
    return Evaluation(summarize(losses, token_bytes[1:]), losses, updates)


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
        if config.ttt == "none" and stride == config.stride:
            return result.losses
        return _unadapted(model, tokens, config, stride, report)

    plain_losses = losses(config.seq_len)
    unadapted = plain = summarize(plain_losses, token_bytes[1:])
    if config.stride < config.seq_len:
        if config.ttt != "none" and not config.measure_gain:
            return References(plain, None, plain_losses)
        unadapted = summarize(found := losses(config.stride), token_bytes[1:])
        return References(plain, unadapted, plain_losses, None if config.ttt == "none" else found)
    return References(plain, unadapted, plain_losses, None if config.ttt == "none" else plain_losses)


def _unadapted(
    model: GPT, tokens: NDArray[np.uint16], config: EvaluateConfig, stride: int, report: Progress
) -> NDArray[np.float32]:
    """Losses of all targets under windows of this stride."""
    phase = "sliding" if stride < config.seq_len else "plain"
    windows = windows_for(tokens, config, stride)
    return token_losses(model, tokens, windows, config.batch_tokens, lambda done, total: report(phase, done, total))


def _running_bpb(
    target_bytes: NDArray[np.integer], report: Progress
) -> Callable[[NDArray[np.float32], int, int], None]:
    """A report per chunk that says the BPB so far."""
    bits, text, seen = 0.0, 0, 0

    def chunk_done(losses: NDArray[np.float32], done: int, total: int) -> None:
        nonlocal bits, text, seen
        bits += float(losses[seen:].sum(dtype=np.float64)) / np.log(2)
        text += int(target_bytes[seen : len(losses)].sum(dtype=np.int64))
        seen = len(losses)
        report(f"chunk TTT, {bits / max(text, 1):.4f} BPB, chunk", done, total)

    return chunk_done


def _documents_bpb(
    kind: str, target_bytes: NDArray[np.integer], report: Progress
) -> Callable[[NDArray[np.float32], NDArray[np.int64], str, int, int], None]:
    """A report per batch of documents that says the BPB so far, of this rank."""
    bits, text = 0.0, 0

    def batch_done(losses: NDArray[np.float32], places: NDArray[np.int64], remark: str, done: int, total: int) -> None:
        nonlocal bits, text
        bits += float(losses.sum(dtype=np.float64)) / np.log(2)
        text += int(target_bytes[places].sum(dtype=np.int64))
        report(f"{kind} TTT, {bits / max(text, 1):.4f} BPB, {remark or 'first passes'}, document", done, total)

    return batch_done
