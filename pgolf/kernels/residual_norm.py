"""The residual stream's passes over memory: mixing and RMSNorm in one, each with its whole backward in one.

    h = r0 * x + r1 * x0,  y = s h / sqrt(mean(h^2) + eps)        without a mix h = x
    backward, q = 1 / sqrt(mean(h^2) + eps), h^ = q h:
        dh = g + q (s dy - h^ mean(s dy h^))                      g: what reaches h past the norm
        dx = r0 * dh,  dx0 = r1 * dh,  dr0 = sum_t dh * x,  dr1 = sum_t dh * x0

`later` is the gradient of x0 so far: it is passed from layer to layer, so that no pass of its own adds it up. `carry`
is a factor on g, and `inside` says whether g reaches h or, past the mix, x (a lane).
h is computed again in the backward pass, from x and x0, which dr needs anyway; without a mix h^ = y / s. Sums over
tokens are taken by every program over its own tokens, in float32, and added at the end: their order is fixed.
With a `Skip` x is made on the way, as `pgolf.kernels.skip` makes it, and leaves too.
With `eight` h leaves in float8 (e4m3) too, clipped to the largest number of that.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels import float8
from pgolf.kernels.launch import rates, shares

EPS = tl.constexpr(torch.finfo(torch.float32).eps)
LARGEST8 = tl.constexpr(float8.LARGEST)
FORWARD_ROWS = 2
"""Tokens of a program; the fastest of 2, 4 and 8 on an H200."""
ROWS = 4
"""Tokens that a program of the backward pass holds at a time; the fastest of 1, 2, 4 and 8 together with the number of
programs."""


@triton.jit
def _norm_forward(
    x, x0, mix, scale, s, weight, gate, joined, h, y, h8, inverse, factor, tokens,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, MIX: tl.constexpr, UNIT: tl.constexpr,
    EIGHT: tl.constexpr, SKIP: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if SKIP:
        w, g = rates(weight, gate, columns, D, True)
        skipped = value
        if not SAME:
            skipped = tl.load(s + place, mask=inside, other=0.0).to(tl.float32)
        skipped = skipped * w
        value = skipped + g * (value - skipped)
        tl.store(joined + place, value, mask=inside)
    if MIX:
        r0 = tl.load(mix + columns, mask=columns < D, other=0.0)
        r1 = tl.load(mix + D + columns, mask=columns < D, other=0.0)
        value = value * r0 + tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32) * r1
        tl.store(h + place, value, mask=inside)
    q = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    tl.store(inverse + rows, q, mask=rows < tokens)
    unit = value * q[:, None]
    if UNIT:
        tl.store(y + place, unit * tl.load(scale), mask=inside)
    else:
        tl.store(factor + rows, q * tl.load(scale), mask=rows < tokens)
    if EIGHT:
        clipped = tl.minimum(tl.maximum(value, -LARGEST8), LARGEST8)
        tl.store(h8 + place, clipped.to(h8.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    dy, past, carry, x, x0, mix, scale, inverse, later, dx, dx0, sums, tokens,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, MIX: tl.constexpr, INSIDE:
    tl.constexpr, LATER: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    s, c = tl.load(scale), tl.load(carry)
    if MIX:
        r0 = tl.load(mix + columns, mask=columns < D, other=0.0)
        r1 = tl.load(mix + D + columns, mask=columns < D, other=0.0)
        sum0 = tl.zeros((ROWS, BLOCK), tl.float32)
        sum1 = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in tl.range(STEPS):
        rows = ((step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        place = rows[:, None] * D + columns
        inside = (rows[:, None] < tokens) & (columns < D)
        q = tl.load(inverse + rows, mask=rows < tokens, other=0.0)[:, None]
        d = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(past + place, mask=inside, other=0.0).to(tl.float32) * c
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if MIX:
            first = tl.load(x0 + place, mask=inside, other=0.0).to(tl.float32)
            unit = (value * r0 + first * r1) * q
        else:
            unit = value / s
        d = d * s
        dh = q * (d - unit * (tl.sum(d * unit, 1) / D)[:, None])
        if INSIDE:
            dh += g
        if MIX:
            sum0 += dh * value
            sum1 += dh * first
            other = dh * r1
            if LATER:
                other += tl.load(later + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx0 + place, other, mask=inside)
            dh = dh * r0
        if not INSIDE:
            dh += g
        tl.store(dx + place, dh, mask=inside)
    if MIX:
        out = sums + tl.program_id(0) * 2 * D + tl.arange(0, BLOCK)
        tl.store(out, tl.sum(sum0, 0), mask=tl.arange(0, BLOCK) < D)
        tl.store(out + D, tl.sum(sum1, 0), mask=tl.arange(0, BLOCK) < D)


class Skip(NamedTuple):
    """x becomes g x + (1 - g) (w s), g = sigmoid(gate), first."""

    s: Tensor | None
    """[T, d] contiguous, None for x itself."""
    weight: Tensor
    """w [d]."""
    gate: Tensor


class Normed(NamedTuple):
    """What the forward pass leaves, T tokens of width d."""

    x: Tensor
    """[T, d], past the skip if there is one."""
    h: Tensor
    """The mixed stream [T, d], or x itself."""
    y: Tensor
    """s norm(h) [T, d]; h where factors are wanted instead."""
    h8: Tensor | None
    """h in float8."""
    inverse: Tensor
    """q [T], float32."""
    factor: Tensor | None
    """s q [T], float32: y is its rows times h."""


def norm_forward(
    x: Tensor, scale: Tensor, x0: Tensor | None = None, mix: Tensor | None = None, eight: bool = False,
    unit: bool = True, skip: Skip | None = None,
) -> Normed:  # fmt: skip
    """x, x0 [T, d] contiguous; scale [] is s; mix [2, d] float32 holds r0 and r1, and comes with every skip; without
    `unit` no y, but factors.
    """
    tokens, width = x.shape
    joined = x if skip is None else torch.empty_like(x)
    h = x if mix is None else torch.empty_like(x)
    inverse = x.new_empty(tokens, dtype=torch.float32)
    y, factor = (torch.empty_like(x), None) if unit else (h, torch.empty_like(inverse))
    h8 = torch.empty_like(x, dtype=float8.KIND) if eight else None
    block = triton.next_power_of_2(width)
    _norm_forward[(triton.cdiv(tokens, FORWARD_ROWS),)](
        x, x0, mix, scale, *(skip or (None, None, None)), joined, h, y, h8, inverse, factor, tokens, width, block,
        FORWARD_ROWS, mix is not None, unit, eight, skip is not None, skip is not None and skip.s is None,
    )  # fmt: skip
    return Normed(joined, h, y, h8, inverse, factor)


def norm_backward(dy: Tensor, past: Tensor, carry: Tensor, y: Tensor, scale: Tensor, inverse: Tensor) -> Tensor:
    """dx [T, d] of a norm without mix; past [T, d] is g, times carry []; y is what the forward pass returned."""
    tokens, width = dy.shape
    dx, (count, steps) = torch.empty_like(dy), shares(dy.device, triton.cdiv(tokens, ROWS))
    _norm_backward[(count,)](
        dy, past, carry, y, None, None, scale, inverse, None, dx, None, None, tokens, steps, width,
        triton.next_power_of_2(width), ROWS, False, True, False,
    )  # fmt: skip
    return dx


class MixGradients(NamedTuple):
    """Gradients of a mix and norm."""

    x: Tensor
    x0: Tensor
    mix: Tensor
    """[2, d], float32."""


def mix_backward(
    dy: Tensor, past: Tensor, carry: Tensor, x: Tensor, x0: Tensor, mix: Tensor, scale: Tensor, inverse: Tensor,
    later: Tensor | None, inside: bool,
) -> MixGradients:  # fmt: skip
    """All of them [T, d] but mix [2, d] and inverse [T]."""
    tokens, width = dy.shape
    dx, dx0 = torch.empty_like(dy), torch.empty_like(dy)
    count, steps = shares(dy.device, triton.cdiv(tokens, ROWS))
    sums = dy.new_empty(count, 2, width, dtype=torch.float32)
    _norm_backward[(count,)](
        dy, past, carry, x, x0, mix, scale, inverse, later, dx, dx0, sums, tokens, steps, width,
        triton.next_power_of_2(width), ROWS, True, inside, later is not None,
    )  # fmt: skip
    return MixGradients(dx, dx0, sums.sum(0))
