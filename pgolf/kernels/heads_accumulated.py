"""`pgolf.kernels.heads.heads_backward` with dq as FlashAttention-4's kernel has added it up, in float32.

It lies as `pgolf.kernels.attention_rows` says, so the pass over queries has an order of its own: a program takes some
rows of one part, reads their sums as they lie, in whole lines, and brings them into order on the chip. A block of 8
columns is rotated with another such block.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.attention_rows import Rows
from pgolf.kernels.heads import Shape, _gains, heads_backward

ROWS, WARPS = 16, 8
"""Rows of a program, 16, 32 or 64, and its warps."""


@triton.jit
def _turned(sums, KV: tl.constexpr, D: tl.constexpr, R: tl.constexpr):
    """[Hkv, D / 8, 8 R] as it lies to [R Hkv, D]."""
    apart = tl.reshape(sums, (KV, D // 8, R // 16, 8, 4, 2, 2))
    return tl.reshape(tl.permute(apart, (2, 5, 3, 0, 1, 4, 6)), (R * KV, D))


@triton.jit
def _partner(x, ROWS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr):
    """Of blocks of HALF columns the other one of its pair: the sum of both less itself, for which nothing is read."""
    pairs = tl.reshape(x, (ROWS, D // HALF // 2, 2, HALF))
    both = tl.broadcast_to(tl.sum(pairs, 2, keep_dims=True), (ROWS, D // HALF // 2, 2, HALF))
    return tl.reshape(both, (ROWS, D)) - x


@triton.jit
def _queries_backward(
    sums, token_of, y, inverse, gain, cos, sin, factor, dx, dgain, rows, scale, period, stride, part,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, R: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    """A tile is [rows and key heads, D]: so a line of y lies in neighbouring threads. Loads come first."""
    first = tl.program_id(0) * R
    each = tl.arange(0, R * KV)
    found = tl.load(token_of + first + each // KV)
    total = tl.zeros((KV,), tl.float32)
    if tl.max(found, 0) >= 0:
        there = found >= 0
        token = tl.maximum(found, 0).to(tl.int64)
        head = each % KV * (H // KV) + part
        columns = tl.arange(0, D)[None, :]
        turned = there[:, None] & (columns < 2 * HALF)

        key, eight = tl.arange(0, KV).to(tl.int64)[:, None, None], tl.arange(0, D // 8)[None, :, None]
        own = sums + (key * rows + first // 64 * 64) * D + first % 64 * 8 + tl.arange(0, 8 * R)[None, None, :]
        given = tl.load(own + eight * 512)
        place = token * (H + 2 * KV) + head
        value = tl.load(y + (place * D)[:, None] + columns, mask=there[:, None], other=0.0).to(tl.float32)
        angle = (tl.maximum(found, 0) % period * HALF)[:, None] + columns % HALF
        c = tl.load(cos + angle, mask=turned, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turned, other=0.0).to(tl.float32)
        sharp = _gains(gain, head, H)
        size = tl.load(inverse + place, mask=there, other=0.0)
        if FACTOR:
            size *= tl.load(factor + token, mask=there, other=0.0)

        g = _turned(given, KV, D, R) * scale
        dot = tl.sum(g * value, 1) / sharp
        across = g - value * (dot / (D * sharp))[:, None]
        s = tl.where(columns < HALF, s, -s)
        result = (across * c - _partner(across, R * KV, D, HALF) * s) * (size * sharp)[:, None]
        tl.store(dx + (token * stride + head * D)[:, None] + columns, result, mask=there[:, None])
        total = tl.sum(tl.reshape(tl.where(there, dot, 0.0), (R, KV)), 0)
    tl.store(dgain + tl.program_id(0) * H + tl.arange(0, KV) * (H // KV) + part, total)


def fits(half: int, head_dim: int) -> bool:
    """Whether rotated halves are whole blocks of 8 columns, and there is something to rotate."""
    return half >= 8 and half & (half - 1) == 0 and 2 * half <= head_dim


def heads_backward_of_sums(
    gradients: tuple[Sequence[Tensor], Tensor, Tensor], rows: Rows, dv2: Tensor | None, y: Tensor, inverse: Tensor,
    gain: Tensor, cos: Tensor, sin: Tensor, shape: Shape, dx: Tensor, factor: Tensor | None = None,
    common: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`heads_backward`, dq / scale in parts [Hkv, rows D], part p of query heads p, p + parts, ..; scale = D^-1/2."""
    sums, dk, dv = gradients
    programs = len(rows.token_of) // ROWS
    dgain = y.new_empty(programs, shape.heads, dtype=torch.float32)
    for part, each in enumerate(sums):
        _queries_backward[(programs,)](
            each, rows.token_of, y, inverse, gain, cos, sin, factor, dx, dgain, len(rows.token_of),
            shape.head_dim**-0.5, shape.period, dx.stride(0), part, shape.heads, shape.kv_heads, shape.head_dim,
            cos.size(1), ROWS, factor is not None, num_warps=WARPS,
        )  # fmt: skip
    heads_backward((None, dk, dv), dv2, y, inverse, gain, cos, sin, shape, dx, factor, common)
    return dgain
