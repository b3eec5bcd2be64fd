"""Validation documents as the rows of adapting evaluations: batches by length, their order, and phases.

A document spans the tokens from one BOS to the next; the next BOS is its last target. Documents are sorted by length
and cut into batches in that order, so that only the last, of the longest, may be short; batches are worked on from the
longest down (PR 1530). 50,000 documents make 782 batches of 64, the first one in the queue of 16.

Phases (PR 1855): with P prefix documents and n phases, boundary p is floor(P (p + 1) / n) documents. Ranks work on
until one of them finds that many scored; each of the others then finishes the batch at which it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Documents(NamedTuple):
    """Equal-length arrays, one entry per document."""

    start: Ints
    """First token, which predicts the first target."""
    targets: Ints
    """Number of targets, at least 1."""

    def take(self, which: Ints) -> "Documents":
        """Some of them, in the order of `which`."""
        return Documents(self.start[which], self.targets[which])

    def places(self) -> Ints:
        """Their targets, counted in the stream."""
        pairs = zip(self.start.tolist(), self.targets.tolist(), strict=True)
        return np.concatenate([np.arange(start, start + targets) for start, targets in pairs])


def find_documents(tokens: NDArray[np.uint16], bos: int) -> Documents:
    """The documents of a stream [n], which together have all its n - 1 targets."""
    starts = np.flatnonzero(tokens[:-1] == bos)
    edges = np.unique(np.concatenate([[0], starts, [len(tokens) - 1]]))
    return Documents(edges[:-1], np.diff(edges))


def plan_batches(targets: Ints, size: int) -> list[Ints]:
    """Indices of the documents of each batch, by ascending length; the batches themselves by descending length."""
    order = np.argsort(targets, kind="stable")
    return [order[first : first + size] for first in range(0, len(order), size)][::-1]


def boundaries(prefix: int, phases: int) -> list[int]:
    """How many documents must be scored before each update of the shared weights."""
    return [prefix * (phase + 1) // phases for phase in range(phases)]


def plan_phases(sizes: Sequence[int], limits: Sequence[int], ranks: int) -> list[int]:
    """Where in a queue of batches each phase ends; behind the last entry only scoring is left.

    A phase needs documents after it, so limits that a short queue does not reach in time have no entry. Every rank
    computes the same list and waits at its end also when it has nothing to do: no rank can miss a barrier.
    """
    ends: list[int] = []
    scored = np.cumsum(sizes)
    for limit in limits:
        end = max(int(np.searchsorted(scored, limit)), *ends[-1:], 0) + ranks
        if end >= len(sizes):
            break
        ends.append(end)
    return ends


def share_out(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Batches for each rank: in order, each to the rank with the least work so far."""
    load, mine = [0.0] * ranks, [list[int]() for _ in range(ranks)]
    for index, cost in enumerate(costs):
        least = load.index(min(load))
        load[least] += cost
        mine[least].append(index)
    return mine
