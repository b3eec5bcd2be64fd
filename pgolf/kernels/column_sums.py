"""Sums over the parts that the programs of a pass left, in one launch and a fixed order."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS, ELEMENTS, WARPS = 16, 32768, 16
"""Most columns of a program, most numbers that it holds at a time, and its warps."""


@triton.jit
def _column_sums(parts, out, rows, columns, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = parts + tl.program_id(1).to(tl.int64) * rows * columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        total += tl.load(first + row * columns + column, mask=(row < rows) & (column < columns), other=0.0)
    place = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(out + tl.program_id(1) * columns + place, tl.sum(total, 0), mask=place < columns)


def column_sums(parts: Tensor) -> Tensor:
    """[s, rows, columns], float32 and contiguous, to sums over rows [s, columns]."""
    count, rows, columns = parts.shape
    out = parts.new_empty(count, columns, dtype=torch.float32)
    wide = min(COLUMNS, triton.next_power_of_2(columns))
    at_once = min(ELEMENTS // wide, triton.next_power_of_2(rows))
    _column_sums[(triton.cdiv(columns, wide), count)](parts, out, rows, columns, wide, at_once, num_warps=WARPS)
    return out
