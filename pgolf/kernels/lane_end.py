"""The last layer in lanes and the norm of their mean in one pass, its gradient in one: neither lane is written.

m = (l0' + l1') / 2 = (c_0 l0 + c_1 l1 + a_0 A + a_1 M) / 2,  a_i = P_i0 + P_i1         l': `pgolf.kernels.lane_sum`
y = q m,  q = 1 / sqrt(mean(m^2) + eps)                                                 as in `pgolf.kernels.final_norm`
backward, g of both l':  g = q / 2 (dy - y mean(dy y)),  dA = a_0 g,  dM = a_1 g;  every scalar's gradient is a sum
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.column_sums import column_sums
from pgolf.kernels.lane_sum import LaneGradients
from pgolf.kernels.launch import shares
from pgolf.kernels.residual_norm import EPS

FORWARD_ROWS = 8
"""Tokens of a program."""
ROWS = 4
"""Tokens that a program of the backward pass holds at a time."""
WARPS = 8
"""Of a program."""
PROGRAMS = 4
"""Of the backward pass for each multiprocessor: what runs at once, or many more, so that the last ones are few."""


@triton.jit
def _end_forward(
    l0, l1, a, m, post, carry, y, inverse, tokens, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    first = tl.load(l0 + place, mask=inside, other=0.0)
    second = tl.load(l1 + place, mask=inside, other=0.0)
    attended = tl.load(a + place, mask=inside, other=0.0)
    fed = tl.load(m + place, mask=inside, other=0.0)
    value = tl.load(carry) * first.to(tl.float32) + tl.load(carry + 1) * second.to(tl.float32)
    value += (tl.load(post) + tl.load(post + 1)) * attended.to(tl.float32)
    value += (tl.load(post + 2) + tl.load(post + 3)) * fed.to(tl.float32)
    value = value * 0.5
    q = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    tl.store(inverse + rows, q, mask=rows < tokens)
    tl.store(y + place, value * q[:, None], mask=inside)


@triton.jit
def _end_backward(
    dy, y, inverse, l0, l1, a, m, post, g, da, dm, sums, tokens,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    by_a, by_m = tl.load(post) + tl.load(post + 1), tl.load(post + 2) + tl.load(post + 3)
    of_a = tl.zeros((ROWS,), tl.float32)
    of_m, c0, c1 = of_a, of_a, of_a
    for step in tl.range(STEPS):
        rows = ((step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        place = rows[:, None] * D + columns
        inside = (rows[:, None] < tokens) & (columns < D)
        d = tl.load(dy + place, mask=inside, other=0.0)  # all of them before the first is waited for
        unit = tl.load(y + place, mask=inside, other=0.0)
        attended = tl.load(a + place, mask=inside, other=0.0)
        fed = tl.load(m + place, mask=inside, other=0.0)
        first = tl.load(l0 + place, mask=inside, other=0.0)
        second = tl.load(l1 + place, mask=inside, other=0.0)
        q = tl.load(inverse + rows, mask=rows < tokens, other=0.0) * 0.5
        d, unit = d.to(tl.float32), unit.to(tl.float32)
        d = (d - unit * (tl.sum(d * unit, 1) / D)[:, None]) * q[:, None]
        tl.store(g + place, d, mask=inside)
        tl.store(da + place, d * by_a, mask=inside)
        tl.store(dm + place, d * by_m, mask=inside)
        of_a += tl.sum(d * attended.to(tl.float32), 1)
        of_m += tl.sum(d * fed.to(tl.float32), 1)
        c0 += tl.sum(d * first.to(tl.float32), 1)
        c1 += tl.sum(d * second.to(tl.float32), 1)
    out = sums + tl.program_id(0) * 6
    total_a, total_m = tl.sum(of_a), tl.sum(of_m)
    tl.store(out, total_a)
    tl.store(out + 1, total_a)
    tl.store(out + 2, total_m)
    tl.store(out + 3, total_m)
    tl.store(out + 4, tl.sum(c0))
    tl.store(out + 5, tl.sum(c1))


def end_forward(
    lanes: tuple[Tensor, Tensor], a: Tensor, m: Tensor, post: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor]:
    """y [T, d] and q [T], float32, of the layer's lanes, A and M [T, d] contiguous; post [2, 2] and carry [2]."""
    (tokens, width), y = a.shape, a.new_empty(a.shape)
    inverse = a.new_empty(tokens, dtype=torch.float32)
    _end_forward[(triton.cdiv(tokens, FORWARD_ROWS),)](
        *lanes, a, m, post, carry, y, inverse, tokens, width, triton.next_power_of_2(width), FORWARD_ROWS,
        num_warps=WARPS,
    )  # fmt: skip
    return y, inverse


def end_backward(
    dy: Tensor, y: Tensor, inverse: Tensor, lanes: tuple[Tensor, Tensor], a: Tensor, m: Tensor, post: Tensor
) -> tuple[Tensor, LaneGradients]:
    """The gradient g [T, d] of both new lanes, and those of the rest; y and inverse are what `end_forward` returned."""
    (tokens, width), (g, da, dm) = a.shape, (a.new_empty(a.shape) for _ in range(3))
    count, steps = shares(a.device, triton.cdiv(tokens, ROWS), PROGRAMS)
    sums = post.new_empty(1, count, 6)
    _end_backward[(count,)](
        dy, y, inverse, *lanes, a, m, post, g, da, dm, sums, tokens, steps, width, triton.next_power_of_2(width), ROWS,
        num_warps=WARPS,
    )  # fmt: skip
    total = column_sums(sums)[0]
    return g, LaneGradients(da, dm, total[:4].view(2, 2), total[4:])
