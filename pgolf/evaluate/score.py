"""Losses per token under a window plan, and the two numbers of the challenge.

    val_loss = S / N,   val_bpb = S / (ln 2 B)

S: summed nats (float64), N: scored targets, B: bytes of the scored targets (int64, from the byte sidecar). A BOS
target adds loss and counts, with 0 bytes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.windows import Windows, plan_documents, plan_windows
from pgolf.model.gpt import GPT

BOS = 1


class Score(NamedTuple):
    """Result over a set of scored targets."""

    loss: float
    """Nats per token."""
    bpb: float
    """Bits per byte."""
    tokens: int
    bytes: int


def summarize(losses: NDArray[np.float32], target_bytes: NDArray[np.integer]) -> Score:
    """Score of per-target losses [n], nats, and the bytes charged to the same targets [n]."""
    if len(losses) != len(target_bytes):
        raise InputError(
            f"{len(losses)} targets have {len(target_bytes)} byte counts: tokens and sidecar do not belong together"
        )
    nats, count = float(losses.sum(dtype=np.float64)), int(target_bytes.sum(dtype=np.int64))
    if count < 1:
        raise InputError("the scored targets hold no text: give validation documents that are not empty")
    return Score(nats / len(losses), nats / (math.log(2) * count), len(losses), count)


def windows_for(tokens: NDArray[np.uint16], config: EvaluateConfig, stride: int) -> Windows:
    """The plan for a token stream [n] and its n - 1 targets."""
    targets = len(tokens) - 1
    if targets < 1:
        raise InputError(f"the validation stream has {len(tokens)} tokens; at least 2 are needed for one target")
    if config.isolate_documents:
        windows = plan_documents(np.flatnonzero(tokens == BOS), targets, config.seq_len, stride)
    else:
        windows = plan_windows(targets, config.seq_len, stride)
    assert windows.covers_once(targets), "a target would be scored twice or never"
    return windows


@torch.no_grad()
def token_losses(
    model: GPT,
    tokens: NDArray[np.uint16],
    windows: Windows,
    batch_tokens: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Loss of every target [n - 1], nats, of a stream [n]; `report` gets targets done and targets in all.

    Rows of one batch are padded on the right to the longest, which causal attention cannot see.
    """
    device = model.tok_emb.weight.device
    losses = np.full(len(tokens) - 1, np.nan, dtype=np.float32)
    order = np.argsort(windows.start - windows.end, kind="stable")  # longest first: little padding
    model.prepare(int((windows.end - windows.start).max()))
    done = position = 0
    while position < len(order):
        width = int(windows.end[order[position]] - windows.start[order[position]])
        chosen = order[position : position + max(batch_tokens // width, 1)]
        position += len(chosen)
        ids = np.zeros((len(chosen), width), dtype=np.int64)
        targets = np.zeros_like(ids)
        for row, w in enumerate(chosen):
            start, end = windows.start[w], windows.end[w]
            ids[row, : end - start] = tokens[start:end]
            targets[row, : end - start] = tokens[start + 1 : end + 1]
        batch = model.losses(torch.from_numpy(ids).to(device), torch.from_numpy(targets).to(device)).cpu().numpy()
        for row, w in enumerate(chosen):
            start, end, first = windows.start[w], windows.end[w], windows.first[w]
            losses[first:end] = batch[row, first - start : end - start]
            done += int(end - first)
        report(done, len(losses))
    if not np.isfinite(losses).all():
        raise InputError("the loss of a token is not a number: the model diverged, train again with a lower rate")
    return losses
