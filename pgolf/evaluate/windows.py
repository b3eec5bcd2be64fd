"""Which tokens each forward pass reads, and which of its targets count: every target exactly once.

A stream of n tokens has n - 1 targets; target t is token t + 1, predicted from tokens up to t. With context
C = L - stride, windows start at 0, stride, 2 stride, ... while start + C < targets; the first scores everything it
covers, the others only what lies beyond their context. (Starting a window wherever a token remains rescored the last
targets up to 32 times in PR 401 and 549.)
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Windows(NamedTuple):
    """Equal-length arrays, one entry per window; input tokens are [start, end)."""

    start: Ints
    end: Ints
    first: Ints
    """First target that this window scores; it scores [first, end)."""

    def covers_once(self, targets: int) -> bool:
        """Whether every target of the stream is scored by exactly one window."""
        edges = np.zeros(targets + 1, dtype=np.int64)
        np.add.at(edges, self.first, 1)
        np.add.at(edges, self.end, -1)
        return bool((edges[:targets].cumsum() == 1).all())


def plan_windows(targets: int, seq_len: int, stride: int, offset: int = 0) -> Windows:
    """Windows over `targets` consecutive targets that begin at token `offset`."""
    context = seq_len - stride
    start = np.arange(0, max(targets - context, 1), stride, dtype=np.int64)
    end = np.minimum(start + seq_len, targets)
    first = np.where(start == 0, 0, start + context)
    return Windows(start + offset, end + offset, first + offset)


def plan_documents(starts: Ints, targets: int, seq_len: int, stride: int) -> Windows:
    """Windows that never reach across a document start; a document's last target is the next document's BOS."""
    edges = np.unique(np.concatenate([[0], starts[starts < targets], [targets]]))
    parts = [plan_windows(int(b - a), seq_len, stride, int(a)) for a, b in itertools.pairwise(edges)]
    return Windows(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
