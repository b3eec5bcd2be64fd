"""The two lanes of a layer from the old ones and what attention and MLP add: one pass forward, one backward.

l0' = c_0 l0 + P_00 A + P_10 M        l1' = c_1 l1 + P_01 A + P_11 M          (`pgolf.model.lanes`)
dA = P_00 g0 + P_01 g1,  dM = P_10 g0 + P_11 g1;  every scalar's gradient is one sum over tokens and channels
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import shares

BLOCK = 1024
"""Elements that a program holds at a time; the fastest of 1024, 2048 and 4096 on an H200."""


@triton.jit
def _lanes_forward(l0, l1, a, m, post, carry, out0, out1, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    attended = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    fed = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(carry) * tl.load(l0 + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out0 + place, first + tl.load(post) * attended + tl.load(post + 2) * fed, mask=inside)
    second = tl.load(carry + 1) * tl.load(l1 + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out1 + place, second + tl.load(post + 1) * attended + tl.load(post + 3) * fed, mask=inside)


@triton.jit
def _lanes_backward(g0, g1, l0, l1, a, m, post, da, dm, sums, count, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    p00, p01, p10, p11 = tl.load(post), tl.load(post + 1), tl.load(post + 2), tl.load(post + 3)
    s00 = tl.zeros((BLOCK,), tl.float32)
    s01, s10, s11, c0, c1 = s00, s00, s00, s00, s00
    for step in tl.range(STEPS):
        place = (step * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = place < count
        first = tl.load(g0 + place, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(g1 + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(da + place, p00 * first + p01 * second, mask=inside)
        tl.store(dm + place, p10 * first + p11 * second, mask=inside)
        attended = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
        fed = tl.load(m + place, mask=inside, other=0.0).to(tl.float32)
        s00 += first * attended
        s01 += second * attended
        s10 += first * fed
        s11 += second * fed
        c0 += first * tl.load(l0 + place, mask=inside, other=0.0).to(tl.float32)
        c1 += second * tl.load(l1 + place, mask=inside, other=0.0).to(tl.float32)
    out = sums + tl.program_id(0) * 6
    tl.store(out, tl.sum(s00))
    tl.store(out + 1, tl.sum(s01))
    tl.store(out + 2, tl.sum(s10))
    tl.store(out + 3, tl.sum(s11))
    tl.store(out + 4, tl.sum(c0))
    tl.store(out + 5, tl.sum(c1))


def lanes_forward(
    lanes: tuple[Tensor, Tensor], a: Tensor, m: Tensor, post: Tensor, carry: Tensor
) -> tuple[Tensor, Tensor]:
    """All [T, d] contiguous; post [2, 2] is P, carry [2] is c, both float32."""
    first, second = a.new_empty(a.shape), a.new_empty(a.shape)
    _lanes_forward[(triton.cdiv(a.numel(), BLOCK),)](*lanes, a, m, post, carry, first, second, a.numel(), BLOCK)
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
    """g are the gradients of both results."""
    da, dm = a.new_empty(a.shape), a.new_empty(a.shape)
    count, steps = shares(a.device, triton.cdiv(a.numel(), BLOCK))
    sums = post.new_empty(count, 6)
    _lanes_backward[(count,)](*g, *lanes, a, m, post, da, dm, sums, a.numel(), steps, BLOCK)
    total = sums.sum(0)
    return LaneGradients(da, dm, total[:4].view(2, 2), total[4:])
