"""What the norm of a row is for the products around it, from the sums that their epilogues leave.

q = 1 / sqrt(sum of squares / d + eps),  factor = s q;       backward, along = q^2 / d (n . dn), times r where the
products were of rows in float8 (`pgolf.kernels.rounded_rows`)
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.residual_norm import EPS, LARGEST8

ELEMENTS = 2048
"""That a program holds; rows of 512 by four."""


@triton.jit
def _rows(x, rows, tokens, width, WIDTH: tl.constexpr):
    """Where the elements are, which there are, and what they are."""
    columns = tl.arange(0, WIDTH)[None, :]
    place, inside = rows[:, None] * width + columns, (rows[:, None] < tokens) & (columns < width)
    return place, inside, tl.load(x + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm_factors(
    x, scale, inverse, factor, h8, tokens, width, mean, WIDTH: tl.constexpr, ROWS: tl.constexpr, SQUARED: tl.constexpr,
    EIGHT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place, inside, value = _rows(x, rows, tokens, width, WIDTH)
    q = tl.rsqrt(tl.sum(value * value if SQUARED else value, 1) * mean + EPS)
    tl.store(inverse + rows, q, mask=rows < tokens)
    tl.store(factor + rows, q * tl.load(scale), mask=rows < tokens)
    if EIGHT:
        clipped = tl.minimum(tl.maximum(value, -LARGEST8), LARGEST8)
        tl.store(h8 + place, clipped.to(h8.dtype.element_ty), mask=inside)


@triton.jit
def _along(x, inverse, size, out, tokens, width, mean, WIDTH: tl.constexpr, ROWS: tl.constexpr, SIZED: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    q = tl.load(inverse + rows, mask=rows < tokens, other=0.0)
    _, _, value = _rows(x, rows, tokens, width, WIDTH)
    along = tl.sum(value, 1) * q * q * mean
    if SIZED:
        along *= tl.load(size + rows, mask=rows < tokens, other=0.0)
    tl.store(out + rows, along, mask=rows < tokens)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Width as a power of two, rows of a program, programs."""
    wide = triton.next_power_of_2(x.size(1))
    rows = max(1, min(512, ELEMENTS // wide))
    return wide, rows, triton.cdiv(len(x), rows)


def norm_factors(x: Tensor, scale: Tensor, width: int | None = None, h8: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """q and s q [N], float32, of rows x [N, d], which are also written to h8, in float8 as they are, clipped; with
    `width` d, x [N, parts] are sums of squares already.
    """
    inverse, factor = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    wide, rows, programs = _sizes(x)
    _norm_factors[(programs,)](
        x, scale, inverse, factor, h8, len(x), x.size(1), 1 / (width or x.size(1)), wide, rows, width is None,
        h8 is not None,
    )  # fmt: skip
    return inverse, factor


def past_factor(sums: Tensor, inverse: Tensor, width: int, times: float = 1.0, size: Tensor | None = None) -> Tensor:
    """q^2 / d times the sum of each row of `sums` [N, parts], times a number, and r = `size` [N]: [N], float32."""
    out = torch.empty_like(inverse)
    wide, rows, programs = _sizes(sums)
    _along[(programs,)](sums, inverse, size, out, len(sums), sums.size(1), times / width, wide, rows, size is not None)
    return out
