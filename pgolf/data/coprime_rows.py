"""Dense rows from many shards at once, each walked with a coprime stride (PR 726, 1060, 1204, 1218).

Cursor of a shard: a random phase below T, n blocks of T tokens, a random start and a random stride coprime to n; its
j-th block is (start + j stride) mod n, which meets every block once. A used-up shard gets a fresh cursor.

Batch of G windows for all ranks, b batches before it, p = min(b / 1800, 1):

    weight of a shard   (blocks left) ^ (0.9 - 0.4 p)
    shards mixed        round(low + p (high - low)), low = max(8, W), high = max(32, 8 W), each at most G and all shards
    windows per shard   one each, the other G - mixed multinomially by the same weights

Windows are shuffled within a shard and dealt round-robin, the order of the shards drawn anew in every round. Every rank
draws the same windows and takes each W-th, from its own rank on. The generator is PCG64 seeded with the names of the
shards (h <- (h xor byte) 1099511628211 mod 2^64, from 0). The published programs hash whole paths, so that their order
depends on the folder; here it does not.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pgolf.data.batches import Batch
from pgolf.data.shards import read_shard
from pgolf.errors import InputError

RAMP = 1800
"""Batches until the mix is widest."""


class CoprimeRows:
    """Endless iterator of batches of [rows, seq_len]; rows cross document boundaries."""

    def __init__(self, shards: Sequence[Path], rows: int, seq_len: int, rank: int = 0, world: int = 1) -> None:
        """Map the shards; every rank reads from all of them. InputError when one holds no whole row."""
        assert min(rows, seq_len) >= 1
        assert 0 <= rank < world
        self.rows, self.seq_len, self.rank, self.world = rows, seq_len, rank, world
        self._shards = [read_shard(path) for path in shards]
        shortest = min(map(len, self._shards), default=0)
        if shortest < seq_len + 1:
            raise InputError(
                f"a training shard of {shortest} tokens holds no row of {seq_len} + 1: give a smaller `train.seq_len`, "
                "larger `tokenize.shard_tokens`, or another order in `train.batches`"
            )
        self._rng = np.random.Generator(np.random.PCG64(seed_of([path.name for path in shards])))
        self._cursors: list[Iterator[int]] = [iter(())] * len(shards)
        self._left = np.array([(len(shard) - 1) // seq_len for shard in self._shards])
        self._batches = 0

    def _cursor(self, shard: int) -> Iterator[int]:
        """A fresh walk over a shard: the position of every block's first token, once."""
        length = len(self._shards[shard])
        phase = int(self._rng.integers(min(self.seq_len, length - self.seq_len)))
        blocks = (length - 1 - phase) // self.seq_len
        start, stride = int(self._rng.integers(blocks)), 1
        while blocks > 1 and math.gcd(stride := int(self._rng.integers(1, blocks)), blocks) > 1:
            pass
        self._left[shard] = blocks
        return iter([phase + (start + j * stride) % blocks * self.seq_len for j in range(blocks)])

    def _take(self, shard: int) -> int:
        """Position of the next block of a shard."""
        position = next(self._cursors[shard], None)
        if position is None:
            self._cursors[shard] = self._cursor(shard)
            position = next(self._cursors[shard])
        self._left[shard] -= 1
        return position

    def _windows(self) -> list[tuple[int, int]]:
        """(shard, position) of every window of the next global batch, in the order in which ranks take them."""
        wanted, shards, rng = self.world * self.rows, len(self._shards), self._rng
        p = min(self._batches / RAMP, 1.0)
        self._batches += 1
        low, high = (min(n, wanted, shards) for n in (max(8, self.world), max(32, 8 * self.world)))
        mixed = round(low + p * (high - low))
        weights = np.maximum(self._left, 1) ** (0.9 - 0.4 * p)
        chosen = rng.choice(shards, mixed, replace=False, p=weights / weights.sum())
        share = weights[chosen] / weights[chosen].sum()
        counts = 1 + rng.multinomial(wanted - mixed, share)
        hands = []
        for shard, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            taken = [(shard, self._take(shard)) for _ in range(count)]
            hands.append([taken[i] for i in rng.permutation(count)])
        windows: list[tuple[int, int]] = []
        while hands:
            hands = [hands[i] for i in rng.permutation(len(hands))]
            windows += [hand.pop() for hand in hands]
            hands = [hand for hand in hands if hand]
        return windows

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken; reads no tokens."""
        for _ in range(batches):
            self._windows()

    def __iter__(self) -> "CoprimeRows":
        return self

    def __next__(self) -> Batch:
        window = np.empty((self.rows, self.seq_len + 1), dtype=np.int64)
        for row, (shard, start) in zip(window, self._windows()[self.rank :: self.world], strict=True):
            row[:] = self._shards[shard][start : start + self.seq_len + 1]
        inputs, targets = np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None)


def seed_of(names: Sequence[str]) -> int:
    """Every byte of every name folded into 64 bits."""
    folded = 0
    for byte in "".join(names).encode():
        folded = ((folded ^ byte) * 1099511628211) % 2**64
    return folded
