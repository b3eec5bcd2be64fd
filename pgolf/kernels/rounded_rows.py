"""Rows of a gradient in float8, each with its largest entry at the top of the range.

    r = max |g| / 448 of a row,  g8 = g / r in float8_e4m3fn;       df = g W = r s_W (g8 W8)

Rows of zeros stay zeros. What products multiply their rows by comes out too, for those of hidden units' gradients in
float8 (`OF_HIDDEN` dp / (r s_W)) as well.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels import float8

LARGEST = tl.constexpr(float8.LARGEST)
OF_HIDDEN = tl.constexpr(float8.OF_HIDDEN)
LEAST = tl.constexpr(1e-30)
"""Of a row's largest entry: the inverse of r is a number of float32."""
ROWS = 4
"""Tokens of a program."""


@triton.jit
def _round_rows(
    g, factor, scale, values, size, scaled, tokens, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    value = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
    r = tl.maximum(tl.max(tl.abs(value), 1), LEAST) / LARGEST
    eighth = tl.minimum(tl.maximum(value / r[:, None], -LARGEST), LARGEST)
    tl.store(values + place, eighth.to(values.dtype.element_ty), mask=inside)
    r *= tl.load(scale)
    tl.store(size + rows, r, mask=rows < tokens)
    r *= tl.load(factor + rows, mask=rows < tokens, other=0.0) / OF_HIDDEN
    tl.store(scaled + rows, r, mask=rows < tokens)


class Rounded(NamedTuple):
    """A gradient [N, d] for a product with a matrix in float8."""

    values: Tensor
    """g8 [N, d]."""
    size: Tensor
    """r s_W [N], float32."""
    factor: Tensor
    """Of hidden units: that times the factor of the row, over `OF_HIDDEN`."""


def round_rows(g: Tensor, factor: Tensor, scale: Tensor) -> Rounded:
    """g [N, d] contiguous, factor [N] and s_W [] float32."""
    tokens, width = g.shape
    values, size, scaled = torch.empty_like(g, dtype=float8.KIND), torch.empty_like(factor), torch.empty_like(factor)
    _round_rows[(triton.cdiv(tokens, ROWS),)](
        g, factor, scale, values, size, scaled, tokens, width, triton.next_power_of_2(width), ROWS
    )
    return Rounded(values, size, scaled)
