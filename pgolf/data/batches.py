"""What a training step reads, and where documents begin in it.

`cu_seqlens` (cumulative sequence lengths) lists the segments that attention must not cross: they start at every BOS,
at position 0, and every `max_document` tokens inside a long document; the list ends with the total length and is
padded with it to a multiple of 64 entries, so that compiled code meets few shapes (PR 1530).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgolf.data.shards import BOS

BUCKET = 64
"""Lengths of `cu_seqlens` are multiples of this."""


class Batch(NamedTuple):
    """One micro-batch of a rank, on the CPU."""

    inputs: Tensor
    """Token ids, int64 [rows, T]."""

    targets: Tensor
    """The token after each input, int64 [rows, T]."""

    cu_seqlens: Tensor | None
    """Segment boundaries of the single row, int32 [multiple of 64]; None: rows are dense, causal over all of T."""


def cut_rows(batch: Batch, length: int) -> Batch:
    """The same tokens as rows of `length`, which divides that of dense rows; packed rows stay as they are."""
    if batch.cu_seqlens is not None or batch.inputs.size(1) == length:
        return batch
    return Batch(batch.inputs.view(-1, length), batch.targets.view(-1, length), None)


def document_boundaries(tokens: npt.NDArray[np.integer], max_document: int) -> Tensor:
    """`cu_seqlens` of one row of input tokens [T], int32 [multiple of 64].

    A row that starts inside a document treats that fragment as a document. Entries rise strictly up to T, then repeat
    T (segments of length 0); no segment is longer than `max_document`.
    """
    assert max_document >= 1
    total = len(tokens)
    starts = np.flatnonzero(tokens == BOS)
    if total and (starts.size == 0 or starts[0] != 0):
        starts = np.concatenate([[0], starts])
    pieces = -(-np.diff(starts, append=total) // max_document)  # segments per document
    before = np.cumsum(pieces) - pieces
    within = np.arange(pieces.sum()) - np.repeat(before, pieces)
    cuts = np.repeat(starts, pieces) + within * max_document
    padded = np.full(-(-(len(cuts) + 1) // BUCKET) * BUCKET, total, dtype=np.int32)
    padded[: len(cuts)] = cuts
    return torch.from_numpy(padded)
