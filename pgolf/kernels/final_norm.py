"""The end of the stack in one pass, its gradient in one: the norm of the stream, or of the mean of two lanes.

m = (l0 + l1) / 2,  y = q m,  q = 1 / sqrt(mean(m^2) + eps)          (`pgolf.model.lanes.mean`, `rms_norm`)
dm = q (dy - y mean(dy y)),  dl0 = dl1 = dm / 2                      without lanes m = l0, whose gradient is dm
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.residual_norm import EPS

ROWS = 4
"""Tokens of a program."""


@triton.jit
def _final_forward(
    first, second, y, inverse, tokens, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    value = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    if LANES:
        value = (value + tl.load(second + place, mask=inside, other=0.0).to(tl.float32)) * 0.5
    q = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    tl.store(inverse + rows, q, mask=rows < tokens)
    tl.store(y + place, value * q[:, None], mask=inside)


@triton.jit
def _final_backward(
    dy, y, inverse, dx, tokens, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    q = tl.load(inverse + rows, mask=rows < tokens, other=0.0)
    if LANES:
        q = q * 0.5
    d = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + place, (d - unit * (tl.sum(d * unit, 1) / D)[:, None]) * q[:, None], mask=inside)


def final_forward(first: Tensor, second: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y [T, d] and q [T], float32, of the stream [T, d] or of two lanes, contiguous."""
    (tokens, width), y = first.shape, first.new_empty(first.shape)
    inverse = first.new_empty(tokens, dtype=torch.float32)
    _final_forward[(triton.cdiv(tokens, ROWS),)](
        first, second, y, inverse, tokens, width, triton.next_power_of_2(width), ROWS, second is not None
    )
    return y, inverse


def final_backward(dy: Tensor, y: Tensor, inverse: Tensor, lanes: bool) -> Tensor:
    """The gradient of the stream [T, d], or of either lane, of dy [T, d] and what `final_forward` returned."""
    (tokens, width), dx = y.shape, y.new_empty(y.shape)
    _final_backward[(triton.cdiv(tokens, ROWS),)](
        dy, y, inverse, dx, tokens, width, triton.next_power_of_2(width), ROWS, lanes
    )
    return dx
