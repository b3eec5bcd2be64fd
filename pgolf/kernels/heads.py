"""QK-norm, partial rotation and query gain of the fused projection, in one pass forward and one backward.

    u = x / sqrt(mean(x^2) + eps) over a head's D dimensions;  q' = gain_h R_t u, k' = R_t u
    R_t: (a, b) -> (a cos + b sin, b cos - a sin), a the first r / 2 dimensions, b the next (`pgolf.model.rotary`)
    backward, w = R_t^T g:  dx = gain_h (w - u mean(w u)) / sqrt(mean(x^2) + eps),  dgain_h = sum over tokens of w . u

The projection is [T, (H + 2 Hkv) D]: queries, keys, values. A program takes some tokens and as many heads as there are
keys. Gradients of keys and values may come in parts, that of values from XSA too; the backward pass adds them up as it
reads them, and one matrix comes out for the products that follow. With `eight` it comes out in float8 (e5m2) too.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import rows

EPS = tl.constexpr(torch.finfo(torch.float32).eps)
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
def _heads_forward(
    x, gain, cos, sin, out, tokens, period,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    token, of_keys, columns, inside = rows(tokens, KV, D, T)
    head = tl.program_id(1) * KV + of_keys
    start = (token * (H + 2 * KV) + head)[:, None] * D
    c, s, partner, turned = _angles(cos, sin, (token % period)[:, None], columns, HALF)
    value = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(x + start + partner, mask=inside & turned, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    factor *= tl.load(gain + head, mask=head < H, other=1.0)
    rotated = (value * c + other * s) * factor[:, None]
    tl.store(out + (token * (H + KV) + head)[:, None] * D + columns, rotated, mask=inside)


@triton.jit
def _heads_backward(
    dq, dk, dv, dv2, x, gain, cos, sin, dx, dx8, dgain, tokens, period, scale8,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, T: tl.constexpr, PARTS: tl.constexpr,
    EIGHT: tl.constexpr, TWO: tl.constexpr,
):  # fmt: skip
    token, of_keys, columns, inside = rows(tokens, KV, D, T)
    chunk = tl.program_id(1)
    head = chunk * KV + of_keys
    start = (token * (H + 2 * KV) + head)[:, None] * D
    own = (token * KV + of_keys)[:, None] * D
    size = tl.full((), KV * D, tl.int64) * tokens
    if chunk * KV > H:
        result = _added(dv, own + columns, inside, size, PARTS)
        if TWO:
            result += tl.load(dv2 + own + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        c, s, partner, turned = _angles(cos, sin, (token % period)[:, None], columns, HALF)
        if chunk * KV < H:
            place = (token * H + head)[:, None] * D
            g = _added(dq, place + columns, inside, size, 1)
            other = _added(dq, place + partner, inside & turned, size, 1)
        else:
            g = _added(dk, own + columns, inside, size, PARTS)
            other = _added(dk, own + partner, inside & turned, size, PARTS)
        w = g * c - other * s
        value = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
        unit = value * inverse[:, None]
        dot = tl.sum(w * unit, 1)
        factor = inverse * tl.load(gain + head, mask=head < H, other=1.0)
        result = (w - unit * (dot / D)[:, None]) * factor[:, None]
        if chunk * KV < H:
            total = tl.sum(tl.reshape(dot, (T, KV)), 0)
            tl.store(dgain + tl.program_id(0) * H + chunk * KV + tl.arange(0, KV), total)
    tl.store(dx + start + columns, result, mask=inside)
    if EIGHT:
        eighth = tl.minimum(tl.maximum(result * scale8, -57344.0), 57344.0)
        tl.store(dx8 + start + columns, eighth.to(dx8.dtype.element_ty), mask=inside)


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

    def split(self, x: Tensor, kinds: int) -> list[Tensor]:
        """The heads of x [T, n D] by kind, each [T, heads, D]: queries, keys and (with 3 kinds) values; views."""
        counts = [self.heads, self.kv_heads, self.kv_heads][:kinds]
        return list(torch.split(x.view(len(x), -1, self.head_dim), counts, dim=1))


def heads_forward(x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, shape: Shape) -> Tensor:
    """x [T, (H + 2 Hkv) D], gain [H] float32, cos and sin [period, r / 2] to q' and k' as one [T, (H + Hkv) D]."""
    out = x.new_empty(len(x), (shape.heads + shape.kv_heads) * shape.head_dim)
    grid = triton.cdiv(len(x), shape.tokens_at_once), shape.heads // shape.kv_heads + 1
    _heads_forward[grid](
        x, gain, cos, sin, out, len(x), shape.period, shape.heads, shape.kv_heads, shape.head_dim, cos.size(1),
        shape.tokens_at_once,
    )  # fmt: skip
    return out


def heads_backward(
    gradients: tuple[Tensor, Tensor, Tensor], dv2: Tensor | None, x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor,
    shape: Shape, scale8: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    """dx like x from dq [T, H, D], dk and dv [parts, T, Hkv, D], contiguous, and a further dv2 [T, Hkv, D]; dx times
    scale8 in float8 (e5m2) if that is given; dgain [H] float32.
    """
    dx = torch.empty_like(x)
    dx8 = None if scale8 is None else torch.empty_like(x, dtype=torch.float8_e5m2)
    blocks = triton.cdiv(len(x), shape.tokens_at_once)
    dgain = x.new_empty(blocks, shape.heads, dtype=torch.float32)
    _heads_backward[(blocks, shape.heads // shape.kv_heads + 2)](
        *gradients, dv2, x, gain, cos, sin, dx, dx8, dgain, len(x), shape.period, scale8 or 0.0, shape.heads,
        shape.kv_heads, shape.head_dim, cos.size(1), shape.tokens_at_once, len(gradients[1]), dx8 is not None,
        dv2 is not None,
    )  # fmt: skip
    return dx, dx8, dgain.sum(0)
