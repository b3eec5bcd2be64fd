"""QK-norm, partial rotation and query gain of the fused projection, in one pass forward and one backward.

    u = x / rms(x), rms(x)^2 = mean(x^2) + eps over a head's D dimensions;  q' = gain_h R_t u, k' = R_t u
    R_t: (a, b) -> (a cos + b sin, b cos - a sin), a the first r / 2 dimensions, b the next (`pgolf.model.rotary`)
    backward, u' = R_t u = q' / gain_h or k':  dx = R_t^T (g - u' mean(g u')) gain_h / rms(x),
                                               dgain_h = sum over tokens of g . u'

The projection is [T, (H + 2 Hkv) D]: queries, keys, values. The forward pass writes q' and k' over it and keeps
1 / rms, so that the backward pass does without x. A gain nearer to 0 than `LEAST_GAIN` counts as that: u' can be had
from q' at any gain, as precisely as it was rounded, and such a head's scores are all 0 either way.

A program takes some tokens and as many heads as there are keys. Gradients of keys and values may come in parts, that of
values from XSA too; the backward pass adds them up as it reads them, and one matrix comes out for the products that
follow: it may be wider than the projection, and its rows may be multiplied. What a query or a key has in common with
its gradient, x . dx, is 0 but for eps; that of values is taken down.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import rows

NORM_EPS = torch.finfo(torch.float32).eps
LEAST_GAIN = 2.0**-40
EPS, LEAST = tl.constexpr(NORM_EPS), tl.constexpr(LEAST_GAIN)
ROWS = 16
"""Heads of tokens that a program holds; the fastest of 16, 32, 64 and 128 on an H200."""


@triton.jit
def _angles(cos, sin, tokens, columns, HALF: tl.constexpr):
    """Cosine and signed sine of every dimension, and the dimension that it is rotated with."""
    turned = columns < 2 * HALF
    partner = tl.where(columns < HALF, columns + HALF, columns - HALF)
    place = tokens * HALF + tl.where(columns < HALF, columns, columns - HALF)
    c = tl.load(cos + place, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + place, mask=turned, other=0.0).to(tl.float32)
    return c, tl.where(columns < HALF, s, -s), partner, turned


@triton.jit
def _added(parts, place, mask, size, PARTS: tl.constexpr):
    """Sum of the parts, `size` elements from one to the next."""
    total = tl.load(parts + place, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + place + part * size, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit
def _gains(gain, head, H: tl.constexpr):
    """1 for keys."""
    value = tl.load(gain + head, mask=head < H, other=1.0)
    return tl.where(tl.abs(value) < LEAST, LEAST, value)


@triton.jit
def _heads_forward(
    x, gain, cos, sin, inverse, tokens, period,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    token, of_keys, columns, inside = rows(tokens, KV, D, T)
    head = tl.program_id(1) * KV + of_keys
    place = token * (H + 2 * KV) + head
    start = x + place[:, None] * D
    c, s, partner, turned = _angles(cos, sin, (token % period)[:, None], columns, HALF)
    value = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(start + partner, mask=inside & turned, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    rotated = (value * c + other * s) * (factor * _gains(gain, head, H))[:, None]
    tl.debug_barrier()  # every partner is read before it is overwritten
    tl.store(start + columns, rotated, mask=inside)
    tl.store(inverse + place, factor, mask=token < tokens)


@triton.jit
def _heads_backward(
    dq, dk, dv, dv2, y, inverse, gain, cos, sin, factor, dx, dgain, common, tokens, period, stride,
    common_stride,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr,
    TWO: tl.constexpr, FACTOR: tl.constexpr, COMMON: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """Everything is loaded before anything is used: one wait, not five."""
    token, of_keys, columns, inside = rows(tokens, KV, D, T)
    chunk, there = tl.program_id(1) + FIRST, token < tokens
    head = chunk * KV + of_keys
    place = token * (H + 2 * KV) + head
    start = y + place[:, None] * D
    own = (token * KV + of_keys)[:, None] * D
    size = tl.full((), KV * D, tl.int64) * tokens
    value = tl.load(start + columns, mask=inside, other=0.0).to(tl.float32)
    times = tl.full((T * KV,), 1.0, tl.float32)
    if FACTOR:
        times = tl.load(factor + token, mask=there, other=0.0)
    if chunk * KV > H:
        result = _added(dv, own + columns, inside, size, PARTS)
        if TWO:
            result += tl.load(dv2 + own + columns, mask=inside, other=0.0).to(tl.float32)
        if COMMON:
            tl.store(common + token * common_stride + of_keys, tl.sum(result * value, 1), mask=there)
    else:
        of_query = chunk * KV < H
        c, s, partner, turned = _angles(cos, sin, (token.to(tl.int32) % period)[:, None], columns, HALF)
        value2 = tl.load(start + partner, mask=inside & turned, other=0.0).to(tl.float32)
        times *= tl.load(inverse + place, mask=there, other=0.0)
        sharp = _gains(gain, head, H)
        upstream, from_row = dk, own
        if of_query:
            upstream, from_row = dq, (token * H + head)[:, None] * D
        g = tl.load(upstream + from_row + columns, mask=inside, other=0.0).to(tl.float32)
        g2 = tl.load(upstream + from_row + partner, mask=inside & turned, other=0.0).to(tl.float32)
        for part in tl.static_range(1, PARTS):
            of_part = inside & (head >= H)[:, None]
            g += tl.load(dk + own + columns + part * size, mask=of_part, other=0.0).to(tl.float32)
            g2 += tl.load(dk + own + partner + part * size, mask=of_part & turned, other=0.0).to(tl.float32)
        result, turned_back = g * c - g2 * s, value * c - value2 * s
        dot = tl.sum(g * value, 1) / sharp
        result -= turned_back * (dot / (D * sharp))[:, None]
        times *= sharp
        if of_query:
            total = tl.sum(tl.reshape(dot, (T, KV)), 0)
            tl.store(dgain + tl.program_id(0) * H + chunk * KV + tl.arange(0, KV), total)
    tl.store(dx + token[:, None] * stride + head[:, None] * D + columns, result * times[:, None], mask=inside)


class Shape(NamedTuple):
    """H query heads and Hkv key heads of D dimensions, in rows of `period` tokens; H / Hkv, Hkv, D powers of two."""

    heads: int
    kv_heads: int
    head_dim: int
    period: int

    @property
    def tokens_at_once(self) -> int:
        """Tokens of a program."""
        return max(1, ROWS // self.kv_heads)

    def split(self, x: Tensor) -> list[Tensor]:
        """The heads of x [..., (H + 2 Hkv) D] by kind, each [..., heads, D]: queries, keys and values; views."""
        counts = [self.heads, self.kv_heads, self.kv_heads]
        return list(torch.split(x.view(*x.shape[:-1], -1, self.head_dim), counts, dim=-2))


def heads_forward(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, shape: Shape) -> Tensor:
    """q' and k' over the projection x [T, (H + 2 Hkv) D], with gain [H] float32, cos and sin [period, r / 2]; 1 / rms
    [T, H + 2 Hkv] float32, of queries and keys.
    """
    inverse = x.new_empty(len(x), shape.heads + 2 * shape.kv_heads, dtype=torch.float32)
    grid = triton.cdiv(len(x), shape.tokens_at_once), shape.heads // shape.kv_heads + 1
    _heads_forward[grid](
        x, gain, cos, sin, inverse, len(x), shape.period, shape.heads, shape.kv_heads, shape.head_dim, cos.size(1),
        shape.tokens_at_once,
    )  # fmt: skip
    return inverse


def heads_backward(
    gradients: tuple[Tensor | None, Tensor, Tensor], dv2: Tensor | None, y: Tensor, inverse: Tensor, gain: Tensor,
    cos: Tensor, sin: Tensor, shape: Shape, dx: Tensor, factor: Tensor | None = None, common: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Writes dx [T, >= (H + 2 Hkv) D], in its first columns, from dq [T, H, D], dk and dv [parts, T, Hkv, D],
    contiguous, and a further dv2 [T, Hkv, D], at y, the projection after `heads_forward`; with `factor` [T] its rows
    are multiplied. `common` [T, >= Hkv], float32, gets v . dv of every head, without the factor. Returns parts of
    dgain [parts, H], float32. Without dq (None) the columns of queries stay as they are, and dgain has no parts.
    """
    dq, dk, dv = gradients
    first = 0 if dq is not None else shape.heads // shape.kv_heads
    blocks = triton.cdiv(len(y), shape.tokens_at_once)
    dgain = y.new_empty(0 if first else blocks, shape.heads, dtype=torch.float32)
    _heads_backward[(blocks, shape.heads // shape.kv_heads + 2 - first)](
        dk if first else dq, dk, dv, dv2, y, inverse, gain, cos, sin, factor, dx, dgain, common, len(y), shape.period,
        dx.stride(0), 0 if common is None else common.stride(0), shape.heads, shape.kv_heads, shape.head_dim,
        cos.size(1), shape.tokens_at_once, len(dk), dv2 is not None, factor is not None, common is not None, first,
    )  # fmt: skip
    return dgain
