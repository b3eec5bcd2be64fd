"""Dense rows in the order of the shards (PR 401, 549, 635): one stream through all of them, again and again.

Each micro-step takes W (n + 1) tokens of the stream for W ranks of n tokens; rank r has the r-th n + 1 of them, the
last of which is a target only. Rows cross documents and shards; nothing is random.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.batches import Batch
from pgolf.data.shards import read_shard
from pgolf.errors import InputError


class SequentialRows:
    """Endless iterator of batches of [rows, seq_len]; the n-th batch is a function of n alone."""

    def __init__(self, shards: Sequence[Path], rows: int, seq_len: int, rank: int = 0, world: int = 1) -> None:
        """Map the shards; every rank reads from all of them. InputError when they hold less than one batch."""
        assert min(rows, seq_len) >= 1
        assert 0 <= rank < world
        self.rows, self.seq_len, self.rank, self.world = rows, seq_len, rank, world
        self._span = rows * seq_len + 1
        self._shards = [read_shard(path) for path in shards]
        self._ends = list(accumulate(map(len, self._shards)))
        self._index = 0
        if not self._ends or self._ends[-1] < world * self._span:
            raise InputError(
                f"the training shards hold {sum(map(len, self._shards))} tokens, one batch needs {world * self._span}: "
                "give more training documents, or a smaller batch"
            )

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken; reads no tokens."""
        self._index += batches

    def __iter__(self) -> "SequentialRows":
        return self

    def __next__(self) -> Batch:
        start = (self._index * self.world + self.rank) * self._span
        self._index += 1
        span = self._read(start % self._ends[-1])
        shape = self.rows, self.seq_len
        return Batch(torch.from_numpy(span[:-1].reshape(shape)), torch.from_numpy(span[1:].reshape(shape)), None)

    def _read(self, start: int) -> npt.NDArray[np.int64]:
        """The span of the endless stream that begins at `start` < its period."""
        shard = int(np.searchsorted(self._ends, start, side="right"))
        offset = start - (self._ends[shard - 1] if shard else 0)
        span, filled = np.empty(self._span, dtype=np.int64), 0
        while filled < self._span:
            piece = self._shards[shard][offset : offset + self._span - filled]
            span[filled : filled + len(piece)] = piece
            filled, offset, shard = filled + len(piece), 0, (shard + 1) % len(self._shards)
        return span
