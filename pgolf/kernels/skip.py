"""A skip of the U-Net by itself (`pgolf.train.skips`: within a block): one pass over its streams forward, one backward.

    x' = g x + (1 - g) (w s),  g = sigmoid(gate),     or x + w s without a gate                       (`GPT.skip`)
    backward, d of x':  dx = g d,  ds = (1 - g) w d,  dw = (1 - g) sum_t d s,  dgate = g (1 - g) sum_t d (x - w s)

Where both streams are one, x = s, it is read once and dx is the sum of both. `branch` is a gradient of x that came
another way; it is added to dx. The gate is float32 throughout.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.column_sums import column_sums
from pgolf.kernels.launch import rates, shares

FORWARD_ROWS = 4
"""Tokens of a program."""
ROWS = 8
"""Tokens that a program of the backward pass holds at a time; the fastest of 2, 4, 8 and 16 on an H100."""


@triton.jit
def _skip_forward(
    x, s, weight, gate, out, tokens,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr, SAME: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    place = rows[:, None] * D + columns
    inside = (rows[:, None] < tokens) & (columns < D)
    w, g = rates(weight, gate, columns, D, GATED)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    skipped = value
    if not SAME:
        skipped = tl.load(s + place, mask=inside, other=0.0).to(tl.float32)
    skipped = skipped * w
    if GATED:
        tl.store(out + place, skipped + g * (value - skipped), mask=inside)
    else:
        tl.store(out + place, value + skipped, mask=inside)


@triton.jit
def _skip_backward(
    d, x, s, weight, gate, branch, dx, ds, sums, tokens,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr,
    SAME: tl.constexpr, BRANCH: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    w, g = rates(weight, gate, columns, D, GATED)
    of_w = tl.zeros((ROWS, BLOCK), tl.float32)
    of_gate = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in tl.range(STEPS):
        rows = ((step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        place = rows[:, None] * D + columns
        inside = (rows[:, None] < tokens) & (columns < D)
        grad = tl.load(d + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        skipped = value
        if not SAME:
            skipped = tl.load(s + place, mask=inside, other=0.0).to(tl.float32)
        of_w += grad * skipped
        to_x, to_s = grad, grad * w
        if GATED:
            of_gate += grad * (value - w * skipped)
            to_x, to_s = grad * g, to_s * (1.0 - g)
        if SAME:
            to_x += to_s
        else:
            tl.store(ds + place, to_s, mask=inside)
        if BRANCH:
            to_x += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + place, to_x, mask=inside)
    if GATED:
        of_w = of_w * (1.0 - g)
        of_gate = of_gate * g * (1.0 - g)
    out = sums + tl.program_id(0) * 2 * D + tl.arange(0, BLOCK)
    tl.store(out, tl.sum(of_w, 0), mask=tl.arange(0, BLOCK) < D)
    tl.store(out + D, tl.sum(of_gate, 0), mask=tl.arange(0, BLOCK) < D)


def skip_forward(x: Tensor, s: Tensor | None, weight: Tensor, gate: Tensor | None) -> Tensor:
    """x' [T, d] of x, s [T, d] contiguous, None for x itself; weight and gate [d]."""
    (tokens, width), out = x.shape, x.new_empty(x.shape)
    _skip_forward[(triton.cdiv(tokens, FORWARD_ROWS),)](
        x, s, weight, gate, out, tokens, width, triton.next_power_of_2(width), FORWARD_ROWS, gate is not None, s is None
    )
    return out


class SkipGradients(NamedTuple):
    """Gradients."""

    x: Tensor
    s: Tensor | None
    """None where x holds it."""
    weight: Tensor
    """[d], float32."""
    gate: Tensor | None


def skip_backward(
    d: Tensor, x: Tensor, s: Tensor | None, weight: Tensor, gate: Tensor | None, branch: Tensor | None = None
) -> SkipGradients:
    """d and branch [T, d] contiguous, the others as `skip_forward` had them."""
    (tokens, width), dx = x.shape, x.new_empty(x.shape)
    ds = None if s is None else x.new_empty(s.shape)
    count, steps = shares(x.device, triton.cdiv(tokens, ROWS))
    sums = weight.new_empty(count, 2, width)
    _skip_backward[(count,)](
        d, x, s, weight, gate, branch, dx, ds, sums, tokens, steps, width, triton.next_power_of_2(width), ROWS,
        gate is not None, s is None, branch is not None,
    )  # fmt: skip
    of_weight, of_gate = column_sums(sums.view(1, len(sums), -1)).view(2, -1)
    return SkipGradients(dx, ds, of_weight, None if gate is None else of_gate)
