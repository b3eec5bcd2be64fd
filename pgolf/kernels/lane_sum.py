"""The two lanes of a layer from the old ones and what attention and MLP add: one pass forward, one backward.

l0' = c_0 l0 + P_00 A + P_10 M        l1' = c_1 l1 + P_01 A + P_11 M          (`pgolf.model.lanes`)
dA = P_00 g0 + P_01 g1,  dM = P_10 g0 + P_11 g1;  every scalar's gradient is one sum over tokens and channels
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.column_sums import column_sums
from pgolf.kernels.launch import shares

BLOCK = 1024
"""Elements of a program of the forward pass; the fastest of 1024, 2048 and 4096 on an H200."""
HELD, WARPS = 1024, 4
"""Elements that a program of the backward pass holds at a time, and its warps."""
FOLD = 8
"""So many of them, neighbours, are added up before they join a sum: fewer registers, more programs at once."""
PROGRAMS = 8
"""Of the backward pass for each multiprocessor: what runs at once, or many more, so that the last ones are few."""
STAGES = 2
"""Pieces of which a program of the backward pass loads the next ones ahead."""


@triton.jit
def _lanes_forward(l0, l1, a, m, post, carry, out0, out1, count, BLOCK: tl.constexpr, ONE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    first = tl.load(l0 + place, mask=inside, other=0.0).to(tl.float32)
    second = first
    if not ONE:
        second = tl.load(l1 + place, mask=inside, other=0.0).to(tl.float32)
    attended = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    fed = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(carry) * first + tl.load(post) * attended + tl.load(post + 2) * fed
    second = tl.load(carry + 1) * second + tl.load(post + 1) * attended + tl.load(post + 3) * fed
    tl.store(out0 + place, first, mask=inside)
    tl.store(out1 + place, second, mask=inside)


@triton.jit
def _folded(x, y, BLOCK: tl.constexpr, FOLD: tl.constexpr):
    """Sums of x y over FOLD neighbours [BLOCK / FOLD]: those of one thread."""
    return tl.sum(tl.reshape(x * y, (BLOCK // FOLD, FOLD)), 1)


@triton.jit
def _lanes_backward(
    g0, g1, l0, l1, a, m, post, da, dm, sums, count,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, FOLD: tl.constexpr, STAGES: tl.constexpr, ONE_G: tl.constexpr,
    ONE: tl.constexpr,
):  # fmt: skip
    p00, p01, p10, p11 = tl.load(post), tl.load(post + 1), tl.load(post + 2), tl.load(post + 3)
    s00 = tl.zeros((BLOCK // FOLD,), tl.float32)
    s01, s10, s11, c0, c1 = s00, s00, s00, s00, s00
    for step in tl.range(STEPS, num_stages=STAGES):
        place = (step * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < count
        first = tl.load(g0 + place, mask=inside, other=0.0)  # all of them before the first is waited for
        second = first
        if not ONE_G:
            second = tl.load(g1 + place, mask=inside, other=0.0)
        attended = tl.load(a + place, mask=inside, other=0.0)
        fed = tl.load(m + place, mask=inside, other=0.0)
        lane0 = tl.load(l0 + place, mask=inside, other=0.0)
        lane1 = lane0
        if not ONE:
            lane1 = tl.load(l1 + place, mask=inside, other=0.0)
        first, second = first.to(tl.float32), second.to(tl.float32)
        attended, fed = attended.to(tl.float32), fed.to(tl.float32)
        tl.store(da + place, p00 * first + p01 * second, mask=inside)
        tl.store(dm + place, p10 * first + p11 * second, mask=inside)
        s00 += _folded(first, attended, BLOCK, FOLD)
        s10 += _folded(first, fed, BLOCK, FOLD)
        c0 += _folded(first, lane0.to(tl.float32), BLOCK, FOLD)
        if not ONE_G:
            s01 += _folded(second, attended, BLOCK, FOLD)
            s11 += _folded(second, fed, BLOCK, FOLD)
        if not (ONE_G and ONE):
            c1 += _folded(second, lane1.to(tl.float32), BLOCK, FOLD)
    if ONE_G:
        s01, s11 = s00, s10
    if ONE_G and ONE:
        c1 = c0
    out = sums + tl.program_id(0) * 6
    tl.store(out, tl.sum(s00))
    tl.store(out + 1, tl.sum(s01))
    tl.store(out + 2, tl.sum(s10))
    tl.store(out + 3, tl.sum(s11))
    tl.store(out + 4, tl.sum(c0))
    tl.store(out + 5, tl.sum(c1))


def _one(pair: tuple[Tensor, Tensor]) -> bool:
    """Whether both are the same numbers in memory, which autograd may hand over as two tensors."""
    return pair[0].data_ptr() == pair[1].data_ptr()


def lanes_forward(
    lanes: tuple[Tensor, Tensor], a: Tensor, m: Tensor, post: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor]:
    """All [T, d] contiguous; post [2, 2] is P, carry [2] is c, both float32."""
    first, second = a.new_empty(a.shape), a.new_empty(a.shape)
    _lanes_forward[(triton.cdiv(a.numel(), BLOCK),)](
        *lanes, a, m, post, carry, first, second, a.numel(), BLOCK, _one(lanes)
    )
    return first, second


class LaneGradients(NamedTuple):
    """Gradients, but for those of the lanes: c g."""

    a: Tensor
    m: Tensor
    post: Tensor
    carry: Tensor


def lanes_backward(
    g: tuple[Tensor, Tensor], lanes: tuple[Tensor, Tensor], a: Tensor, m: Tensor, post: Tensor
) -> LaneGradients:
    """g are the gradients of both results; where they are the same tensor, or the lanes are, it is read once."""
    da, dm = a.new_empty(a.shape), a.new_empty(a.shape)
    count, steps = shares(a.device, triton.cdiv(a.numel(), HELD), PROGRAMS)
    sums = post.new_empty(1, count, 6)
    _lanes_backward[(count,)](
        *g, *lanes, a, m, post, da, dm, sums, a.numel(), steps, HELD, FOLD, STAGES, _one(g), _one(lanes),
        num_warps=WARPS,
    )  # fmt: skip
    total = column_sums(sums)[0]
    return LaneGradients(da, dm, total[:4].view(2, 2), total[4:])
