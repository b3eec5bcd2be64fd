"""What the norm of a row is for the products around it, from the sums that their epilogues leave.

q = 1 / sqrt(sum of squares / d + eps),  factor = s q;       backward, along = q^2 / d (n . dn), times r where the
products were of rows in float8 (`pgolf.kernels.rounded_rows`)
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.residual_norm import EPS

ELEMENTS = 2048
"""That a program holds; rows of 512 by four."""


@triton.jit
def _sum(x, rows, tokens, width, WIDTH: tl.constexpr, SQUARED: tl.constexpr):
    columns = tl.arange(0, WIDTH)[None, :]
    inside = (rows[:, None] < tokens) & (columns < width)
    value = tl.load(x + rows[:, None] * width + columns, mask=inside, other=0.0).to(tl.float32)
    return tl.sum(value * value if SQUARED else value, 1)


@triton.jit
def _norm_factors(
    x, scale, inverse, factor, tokens, width, mean, WIDTH: tl.constexpr, ROWS: tl.constexpr, SQUARED: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    q = tl.rsqrt(_sum(x, rows, tokens, width, WIDTH, SQUARED) * mean + EPS)
    tl.store(inverse + rows, q, mask=rows < tokens)
    tl.store(factor + rows, q * tl.load(scale), mask=rows < tokens)


@triton.jit
def _along(x, inverse, size, out, tokens, width, mean, WIDTH: tl.constexpr, ROWS: tl.constexpr, SIZED: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    q = tl.load(inverse + rows, mask=rows < tokens, other=0.0)
    along = _sum(x, rows, tokens, width, WIDTH, False) * q * q * mean
    if SIZED:
        along *= tl.load(size + rows, mask=rows < tokens, other=0.0)
    tl.store(out + rows, along, mask=rows < tokens)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """Width as a power of two, rows of a program, programs."""
    wide = triton.next_power_of_2(x.size(1))
    rows = max(1, min(512, ELEMENTS // wide))
    return wide, rows, triton.cdiv(len(x), rows)


def norm_factors(x: Tensor, scale: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """q and s q [N], float32, of rows x [N, d]; with `width` d, x [N, parts] are sums of squares already."""
    inverse, factor = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    wide, rows, programs = _sizes(x)
    _norm_factors[(programs,)](
        x, scale, inverse, factor, len(x), x.size(1), 1 / (width or x.size(1)), wide, rows, width is None
    )
    return inverse, factor


def past_factor(sums: Tensor, inverse: Tensor, width: int, times: float = 1.0, size: Tensor | None = None) -> Tensor:
    """q^2 / d times the sum of each row of `sums` [N, parts], times a number, and r = `size` [N]: [N], float32."""
    out = torch.empty_like(inverse)
    wide, rows, programs = _sizes(sums)
    _along[(programs,)](sums, inverse, size, out, len(sums), sums.size(1), times / width, wide, rows, size is not None)
    return out
