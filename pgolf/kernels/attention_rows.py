"""What FlashAttention-4's backward kernel reads and leaves on Hopper: rows in tiles, each of one document.

    row of token t of document b = (cu[b] + 128 b) // 128 * 128 + t - cu[b]                [rows, a multiple of 128]
    it reads lse log2(e), and delta = sum over D of dy . y;  where no token is inf and 0   [Hkv, rows] float32
    it adds dq / scale to what is 0 before                                                 [Hkv, rows D] float32

The package writes the first two in a pass that reads dy and y, and turns the last into dq in one after. Here delta is
given, and `pgolf.kernels.heads_accumulated` reads dq / scale as it lies, 128 rows as the registers of a matrix product:
[2, D / 8, 4, 8, 4, 2, 2], whose element [a, b, w, r, p, h, e] is row 64 a + 16 w + 8 h + r and column 8 b + 2 p + e.
(Version 4.0.0b36, `flash_attn.cute`: `seqlen_info.py`, `flash_bwd_preprocess.py`, `flash_bwd_sm90.py`.)
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
LOG2_E, INFINITY = tl.constexpr(math.log2(math.e)), tl.constexpr(math.inf)


@triton.jit
def _prepare(
    token_of, delta, lse, dpsum, lse_log2, sums, rows, delta_stride, delta_head, lse_head,
    D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    token = tl.load(token_of + row)
    if tl.max(token, 0) >= 0:
        there, head = token >= 0, tl.program_id(1).to(tl.int64)
        total = tl.load(delta + token.to(tl.int64) * delta_stride + head * delta_head, mask=there, other=0.0)
        tl.store(dpsum + head * rows + row, total)
        tl.store(
            lse_log2 + head * rows + row,
            tl.load(lse + head * lse_head + token, mask=there, other=INFINITY) * LOG2_E,
        )
        first = (head * rows + tl.program_id(0) * TILE) * D
        tl.store(sums + first + tl.arange(0, TILE * D), tl.zeros((TILE * D,), tl.float32))


class Rows(NamedTuple):
    """The rows of documents."""

    token_of: Tensor
    """The token of every row [rows], -1 where none is; int32."""

    def prepare(self, delta: Tensor, lse: Tensor, dpsum: Tensor, lse_log2: Tensor, sums: Tensor) -> None:
        """Writes the last three, as above, for as many heads as delta [T, Hkv] and lse [Hkv, T] have; tiles without a
        token are left alone.
        """
        heads, rows = dpsum.shape
        assert rows == len(self.token_of)
        _prepare[(rows // TILE, heads)](
            self.token_of, delta, lse, dpsum, lse_log2, sums, rows, *delta.stride(), lse.stride(0),
            sums.size(1) // rows, TILE,
        )  # fmt: skip


def rows_of(cu_seqlens: Tensor, tokens: int) -> Rows:
    """Of documents that start at cu_seqlens [n + 1], int32, which ends with the number of tokens, repeatedly where
    documents are empty. How many rows there are follows from the shapes alone.
    """
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    firsts = (starts + TILE * torch.arange(len(starts), device=starts.device)) // TILE * TILE
    row = torch.arange((tokens + len(cu_seqlens) * TILE - 1) // TILE * TILE, device=starts.device)
    document = torch.searchsorted(firsts, row, right=True) - 1
    token = starts[document] + row - firsts[document]
    return Rows(torch.where(token < ends[document], token, -1).int())
