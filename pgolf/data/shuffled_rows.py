"""Shuffled rows of a fixed length (PRs 1394, 1413, 1493, 1520; also used to calibrate GPTQ).

Rank r owns the shards r, r + W, ... Each shard is cut into blocks of T tokens after a random phase, in a random order;
each row takes its shard with a probability proportional to the blocks left in it. When no block is left, all is drawn
again. The random generator is PCG64 seeded with the rank, not with the run's seed: order is the same in every run.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.batches import Batch
from pgolf.data.shards import read_shard
from pgolf.errors import InputError


class ShuffledRows:
    """Endless iterator of batches of [rows, seq_len]; rows cross document boundaries."""

    def __init__(
        self, shards: Sequence[Path], rows: int, seq_len: int, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:
        """Map this rank's shards; a `seed` other than 0 draws another order than the published one.

        Raises InputError when there are fewer shards than ranks, or when this rank's shards might hold less than one
        batch of distinct blocks.
        """
        assert min(rows, seq_len) >= 1
        assert 0 <= rank < world
        if len(shards) < world:
            raise InputError(
                f"{len(shards)} training shards cannot feed {world} ranks, each of which needs its own: lower "
                "`tokenize.shard_tokens` for more shards, use fewer ranks, or the packed loader"
            )
        self.rows, self.seq_len = rows, seq_len
        self._shards = [read_shard(path) for path in shards[rank::world]]
        sure = sum((len(shard) - 1 - self._last_phase(shard)) // seq_len for shard in self._shards)
        if sure < rows:
            raise InputError(
                f"the training shards of rank {rank} hold {sure} blocks of {seq_len} tokens, one batch needs {rows}: "
                "give more training documents, or a smaller batch or sequence length"
            )
        self._rng = np.random.Generator(np.random.PCG64([seed, rank] if seed else rank))
        self._starts: list[npt.NDArray[np.int64]] = []
        self._left = np.zeros(0)
        self._draw()

    def _last_phase(self, shard: npt.NDArray[np.uint16]) -> int:
        """The largest phase, which leaves a shard of T + 1 tokens or more at least one block."""
        return min(self.seq_len - 1, max(0, len(shard) - self.seq_len - 1))

    def _draw(self) -> None:
        """A fresh phase and order for every shard: `_starts[s]` is used from its end, `_left[s]` counts the rest."""
        self._starts = []
        for shard in self._shards:
            last = self._last_phase(shard)
            phase = int(self._rng.integers(last + 1)) if last else 0
            order = self._rng.permutation((len(shard) - 1 - phase) // self.seq_len)
            self._starts.append(phase + order * self.seq_len)
        self._left = np.array([len(starts) for starts in self._starts], dtype=np.float64)

    def _next_block(self) -> tuple[int, int]:
        """(shard, position of its first token) of the next row."""
        if self._left.sum() <= 0:
            self._draw()
        shard = int(self._rng.choice(len(self._shards), p=self._left / self._left.sum()))
        self._left[shard] -= 1
        return shard, int(self._starts[shard][int(self._left[shard])])

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken; reads no tokens."""
        for _ in range(batches * self.rows):
            self._next_block()

    def __iter__(self) -> "ShuffledRows":
        return self

    def __next__(self) -> Batch:
        window = np.empty((self.rows, self.seq_len + 1), dtype=np.int64)
        for row in window:
            shard, start = self._next_block()
            row[:] = self._shards[shard][start : start + self.seq_len + 1]
        inputs, targets = np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None)
