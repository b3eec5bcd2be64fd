"""Documents packed into one long row, for attention that stops at document boundaries (PR 1530 on).

A cursor starts at the first BOS of a shard. At each step rank r takes the T + 1 tokens at `cursor + r (T + 1)`, whose
last is a target only, and the cursor moves by `W (T + 1)`. What remains of a shard when that no longer fits is
dropped. Shards come in order, and then again from the first: nothing is random.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.batches import Batch, document_boundaries
from pgolf.data.shards import BOS, read_shard
from pgolf.errors import InputError

SCAN_TOKENS = 1 << 20


class PackedDocuments:
    """Endless iterator of batches of [1, tokens] with `cu_seqlens`; the n-th batch is a function of n alone."""

    def __init__(self, shards: Sequence[Path], tokens: int, max_document: int, rank: int = 0, world: int = 1) -> None:
        """Map the shards; every rank reads from all of them, at its own place.

        Raises InputError when no shard holds one batch for all ranks after its first BOS.
        """
        assert min(tokens, max_document) >= 1
        assert 0 <= rank < world
        self.tokens, self.max_document, self.rank, self.world = tokens, max_document, rank, world
        self._step = world * (tokens + 1)
        self._shards = [read_shard(path) for path in shards]
        self._first = [first_bos(shard) for shard in self._shards]
        counts = [(len(shard) - first) // self._step for shard, first in zip(self._shards, self._first, strict=True)]
        self._ends = list(accumulate(counts))  # batches up to and including each shard
        self._index = 0
        if not self._ends or self._ends[-1] == 0:
            if all(first == len(shard) for shard, first in zip(self._shards, self._first, strict=True)):
                raise InputError(
                    f"none of the {len(shards)} training shards holds a BOS (id {BOS}): documents cannot be told "
                    "apart; run `pgolf tokenize`, or fetch shards with BOS"
                )
            raise InputError(
                f"no training shard holds the {self._step} tokens that one batch needs ({world} ranks of {tokens} + 1; "
                f"the longest has {max(map(len, self._shards))}): give more training documents, a smaller batch, or "
                "larger `tokenize.shard_tokens`"
            )

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken; reads no tokens."""
        self._index += batches

    def __iter__(self) -> "PackedDocuments":
        return self

    def __next__(self) -> Batch:
        index = self._index % self._ends[-1]
        self._index += 1
        shard = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (self._ends[shard - 1] if shard else 0)
        start = self._first[shard] + within * self._step + self.rank * (self.tokens + 1)
        span = self._shards[shard][start : start + self.tokens + 1].astype(np.int64)
        boundaries = document_boundaries(span[:-1], self.max_document)
        return Batch(torch.from_numpy(span[None, :-1]), torch.from_numpy(span[None, 1:]), boundaries)


def first_bos(tokens: npt.NDArray[np.uint16]) -> int:
    """Position of the first BOS, or the length where there is none; reads no further than needed."""
    for start in range(0, len(tokens), SCAN_TOKENS):
        found = np.flatnonzero(tokens[start : start + SCAN_TOKENS] == BOS)
        if found.size:
            return start + int(found[0])
    return len(tokens)
