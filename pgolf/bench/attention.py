"""Milliseconds of attention, forward and backward, for every back end that is present."""

import functools
import itertools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.model.attention import Segments, attend, present, using

HEADS, KV_HEADS, HEAD_DIM = 8, 4, 64
"""PR 1855."""
DTYPE = torch.bfloat16
MEAN_DOCUMENT = 1000
"""Tokens of a document of the packed row on average, before long ones are cut."""
WARM_UP = 3


class Timing(NamedTuple):
    """Medians in milliseconds."""

    backend: str
    rows: str
    """Which rows: `packed` documents or `dense`."""
    forward: float
    both: float
    """Forward and backward."""


def attention_timings(device: torch.device, tokens: int, longest: int, repeats: int) -> list[Timing]:
    """Time one packed row of `tokens` with documents up to `longest`, then the same tokens in rows of `longest`."""
    torch.manual_seed(0)
    rows = max(tokens // longest, 1)
    packed = Segments(documents(tokens, longest).to(device), longest)
    found = []
    for what, shape, segments in (("packed", (1, tokens), packed), ("dense", (rows, longest), None)):
        q, k, v, dy = (
            torch.randn(*shape, n, HEAD_DIM, device=device, dtype=DTYPE) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)
        )
        for leaf in (q, k, v):
            leaf.requires_grad_()
        forward = functools.partial(attend, q, k, v, segments)
        both = functools.partial(_both, q, k, v, segments, dy)
        for name in present(device, DTYPE, HEAD_DIM, packed=segments is not None):
            with using(name):
                with torch.no_grad():
                    alone = milliseconds(forward, repeats)
                found.append(Timing(name, what, alone, milliseconds(both, repeats)))
    return found


def _both(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None, dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attend(q, k, v, segments), (q, k, v), dy)


def documents(tokens: int, longest: int) -> Tensor:
    """Boundaries of documents with exponentially distributed lengths, cut at `longest`: int32, a multiple of 64."""
    lengths = torch.empty(tokens).exponential_(1 / MEAN_DOCUMENT).long().clamp(1, longest)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    starts = starts[starts < tokens]
    return torch.cat([starts, torch.full((64 - len(starts) % 64,), tokens)]).int()


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls on the CUDA device, after a few that do not count."""
    for _ in range(WARM_UP):
        function()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        function()
        mark.record()
    torch.cuda.synchronize()
    return float(statistics.median(before.elapsed_time(after) for before, after in itertools.pairwise(marks)))
