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
from torch import Tensor

from pgolf import ranks
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.windows import Windows, plan_documents, plan_windows
from pgolf.model.gpt import GPT

BOS = 1
Places = NDArray[np.int64] | slice
"""Targets, counted in the stream."""
Scored = Callable[[NDArray[np.float32], Places, str, int, int], None]
"""Gets the losses of a batch, the targets that they belong to, a remark, the batches (or documents) done and in all."""


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


def subset_scores(
    name: str, losses: NDArray[np.float32], target_bytes: NDArray[np.integer], targets: int | None
) -> dict[str, float]:
    """Metrics of the first `targets` only, never to be taken for the score; empty where nobody asked."""
    if targets is None:
        return {}
    if targets > len(losses):
        raise InputError(f"`evaluate.subset_targets` is {targets}, there are only {len(losses)} targets: lower it")
    part = summarize(losses[:targets], target_bytes[:targets])
    return {f"{name}_subset_bpb": part.bpb, f"{name}_subset_loss": part.loss}


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


def token_losses(
    model: GPT,
    tokens: NDArray[np.uint16],
    windows: Windows,
    batch_tokens: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Loss of every target [n - 1], nats, of a stream [n]; `report` gets targets done and targets in all."""
    stream, losses = on_device(tokens, model.tok_emb.weight.device)
    score_windows(model, stream, share(windows), batch_tokens, losses, report)
    return finite(ranks.merge_losses(losses[:-1]).cpu().numpy(), "train again with a lower rate")


def share(windows: Windows) -> Windows:
    """The windows of this rank: every R-th, so that all have as many long ones."""
    return Windows(*(column[ranks.rank() :: ranks.world()] for column in windows))


def on_device(tokens: NDArray[np.uint16], device: torch.device) -> tuple[Tensor, Tensor]:
    """The stream [n] and a place for the loss of each of its n - 1 targets, NaN until scored, and one of scratch."""
    stream = torch.from_numpy(tokens.astype(np.int32)).to(device)
    return stream, torch.full(stream.shape, math.nan, device=device)


def finite(losses: NDArray[np.float32], remedy: str) -> NDArray[np.float32]:
    """The losses, unless one of them is not a number."""
    if not np.isfinite(losses).all():
        raise InputError(f"the loss of a token is not a number: the model diverged, {remedy}")
    return losses


@torch.no_grad()
def score_windows(
    model: GPT,
    stream: Tensor,
    windows: Windows,
    batch_tokens: int,
    losses: Tensor,
    report: Callable[[int, int], None] = lambda done, total: None,
    write: Callable[[Tensor, Tensor], None] | None = None,
) -> None:
    """Write the loss of every target that `windows` score into its place in `losses` [n], of a stream [n].

    `write`, where given, gets places [B, T] and the final states [B, T, d] that predict the targets there.

    Both come from `on_device`, and the host never waits for the device, so `report` may run a little ahead of it.
    Rows of one batch are padded on the right to the longest, which causal attention cannot see.
    """
    lengths = windows.end - windows.start
    if not len(lengths):
        return
    order = np.argsort(-lengths, kind="stable")  # longest first: little padding
    device, scratch = stream.device, len(stream) - 1
    start, end, first = (torch.from_numpy(column[order]).to(device)[:, None] for column in windows)
    scored = (windows.end - windows.first)[order].cumsum()
    model.prepare(int(lengths.max()))
    position = 0
    while position < len(order):
        width = int(lengths[order[position]])
        rows = slice(position, min(position + max(batch_tokens // width, 1), len(order)))
        place = start[rows] + torch.arange(width, device=device)
        inside = place < end[rows]
        place = place.where(inside, 0)
        ids, targets = stream[place].where(inside, 0), stream[place + 1].where(inside, 0)
        counts = inside & (place >= first[rows])
        hidden, place = model.hidden(ids.long()), place.where(counts, scratch)
        losses[place] = model.surprise(hidden, targets.long())
        if write:
            write(place, hidden)
        position = rows.stop
        report(int(scored[position - 1]), len(losses) - 1)
