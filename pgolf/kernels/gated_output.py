"""Exclusive self-attention and the narrow output gate, one pass forward and one backward.

    s = max(v . v, 1e-24), a = y . v / s;  z = g (y - a v),  g = sigmoid(k l), l = W n[:window]      (PR 265, 1787)
    backward, b = dz . v / s:
        dy = g (dz - b v);  dv = -g (a (dz - b v) + b (y - a v)), summed over the group
        dl = dy . y k (1 - g),  dy . y = g (dz . y - a b s)

So a head takes four sums over its dimensions: y . v, dz . v, dz . y and v . v. Attention's gradient needs dy . y as
well, of the dy that it is given: then that takes the place of the third. The logits l are kept for the backward pass.
dl stands behind the gradients of queries, keys and values, as W stands below their weights: the products that give
those their gradients give W and n theirs (`pgolf.train.folded`). What is n may be h times a factor of its row.

y [T, H, D], v [T, Hkv, D] inside a wider matrix, n [T, d >= 16], W [H, window] float32. Either half can be left out.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import rows

FORWARD_TOKENS = 16
"""Tokens of a program; the fastest of 4, 8 and 16 on an H200."""
TOKENS, WARPS = 4, 4
"""Tokens and warps of a program of the backward pass."""
WINDOW = 16
"""Columns of n that a program reads; where the window is narrower, the weight of the others is 0."""
GATE_COLUMNS = 16
"""Columns for dl come in multiples of it, the rest of them 0."""


@triton.jit
def _gated_forward(
    y, v, n, factor, w, z, logits, tokens, v_stride, n_stride, k, window,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, WINDOW: tl.constexpr, XSA: tl.constexpr,
    GATE: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    token, head, columns, inside = rows(tokens, H, D, T)
    place = (token * H + head)[:, None] * D + columns
    value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if XSA:
        own_place = token[:, None] * v_stride + (head // (H // KV))[:, None] * D + columns
        own = tl.load(v + own_place, mask=inside, other=0.0).to(tl.float32)
        along = tl.sum(value * own, 1) / tl.maximum(tl.sum(own * own, 1), 1e-24)
        value -= along[:, None] * own
    if GATE:
        narrow, there = tl.arange(0, WINDOW)[None, :], token < tokens
        near = tl.load(n + token[:, None] * n_stride + narrow, mask=there[:, None], other=0.0).to(tl.float32)
        weight = tl.load(w + head[:, None] * window + narrow, mask=narrow < window, other=0.0).to(tl.float32)
        logit = tl.sum(near * weight, 1)
        if FACTOR:
            logit *= tl.load(factor + token, mask=there, other=0.0)
        tl.store(logits + token * H + head, logit, mask=there)
        value *= tl.sigmoid(k * logit)[:, None]
    tl.store(z + place, value, mask=inside)


@triton.jit
def _gated_backward(
    dz, y, v, logits, factor, dy, dv, dl, common, delta, tokens, v_stride, dl_stride, common_stride, k,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, XSA: tl.constexpr, GATE: tl.constexpr,
    FACTOR: tl.constexpr, COMMON: tl.constexpr, COLUMNS: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """A tile is [tokens and key heads, query heads of a key head, D], and dv a sum over its second axis."""
    each = tl.arange(0, T * KV)[:, None, None]
    token, key = (tl.program_id(0) * T + each // KV).to(tl.int64), each % KV
    columns = tl.arange(0, D)[None, None, :]
    there = token < tokens
    inside = there & (columns < D)
    head = key * (H // KV) + tl.arange(0, H // KV)[None, :, None]
    row = token * H + head
    value = tl.load(y + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(dz + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    gate = 1.0
    if GATE:
        logit = tl.load(logits + row, mask=there, other=0.0)
        gate = tl.sigmoid(k * logit)
    if GATE and not DELTA:
        product = tl.sum(e * value, 2, keep_dims=True)
    if XSA:
        own = tl.load(v + token * v_stride + key * D + columns, mask=inside, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.maximum(tl.sum(own * own, 2, keep_dims=True), 1e-24)
        y_v = tl.sum(value * own, 2, keep_dims=True)
        a, b = y_v * inverse, tl.sum(e * own, 2, keep_dims=True) * inverse
        if GATE and not DELTA:
            product -= y_v * b
        e -= b * own
        value -= a * own
        dv_heads = (gate * a) * e + (gate * b) * value
        tl.store(dv + (token * KV + key) * D + columns, -tl.sum(dv_heads, 1, keep_dims=True), mask=inside)
    result = (gate * e).to(dy.dtype.element_ty)
    tl.store(dy + row * D + columns, result, mask=inside)
    if DELTA:
        if XSA:
            value += a * own
        total = tl.sum(result.to(tl.float32) * value, 2, keep_dims=True)
        tl.store(delta + row, total, mask=there)
    if GATE:
        d_logit = (total if DELTA else product * gate) * ((1.0 - gate) * k)
        if COMMON:
            tl.store(common + token * common_stride + key, tl.sum(d_logit * logit, 1, keep_dims=True), mask=there)
        if FACTOR:
            d_logit *= tl.load(factor + token, mask=there, other=0.0)
        tl.store(dl + token * dl_stride + head, d_logit, mask=there)
        last = (tl.program_id(0) * T + tl.arange(0, T)).to(tl.int64)[:, None]
        spare = tl.arange(0, COLUMNS)[None, :]
        nothing = tl.zeros((T, COLUMNS), tl.float32)
        tl.store(dl + last * dl_stride + spare, nothing, mask=(last < tokens) & (spare >= H))


class Gate(NamedTuple):
    """The gate's input n, or h and a factor for each of its rows; its weight, and k."""

    n: Tensor
    factor: Tensor | None
    weight: Tensor
    k: float

    @property
    def columns(self) -> int:
        """That dl takes."""
        return -(-len(self.weight) // GATE_COLUMNS) * GATE_COLUMNS


def _values(y: Tensor, v: Tensor | None) -> tuple[int, int]:
    """From one token's values to the next's, and key heads."""
    return (0, y.size(1)) if v is None else (v.stride(0), v.size(1))


def gated_forward(y: Tensor, v: Tensor | None, gate: Gate | None) -> tuple[Tensor, Tensor | None]:
    """z [T, H, D] and the logits [T, H] float32; v is None without XSA."""
    y, (tokens, heads, dim) = y.contiguous(), y.shape
    z, logits = y.new_empty(y.shape), None if gate is None else y.new_empty(tokens, heads, dtype=torch.float32)
    n, factor, w, k = (None, None, None, 0.0) if gate is None else gate
    n_stride, window = (0, 0) if gate is None else (gate.n.stride(0), gate.weight.size(1))
    v_stride, kv_heads = _values(y, v)
    _gated_forward[(triton.cdiv(tokens, FORWARD_TOKENS),)](
        y, v, n, factor, w, z, logits, tokens, v_stride, n_stride, k, window, heads, kv_heads, dim, FORWARD_TOKENS,
        WINDOW, v is not None, gate is not None, factor is not None,
    )  # fmt: skip
    return z, logits


def gated_backward(
    dz: Tensor, y: Tensor, v: Tensor | None, gate: Gate | None, logits: Tensor | None, dl: Tensor,
    common: Tensor | None = None, delta: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """dy [T, H, D] and dv [T, Hkv, D] from dz [T, H, D], contiguous like y, and the logits of `gated_forward`. dl
    [T, gate.columns] is written, times the gate's factor; `common`, float32, gets dl l, without it, in its first
    columns: sums over the query heads of a key head [T, Hkv], or without v of each [T, H].
    `delta` [T, H], float32, gets dy . y.
    """
    y, (tokens, heads, dim) = y.contiguous(), y.shape
    dy, dv = y.new_empty(y.shape), None if v is None else y.new_empty(v.shape)
    factor = None if gate is None else gate.factor
    v_stride, kv_heads = _values(y, v)
    _gated_backward[(triton.cdiv(tokens, TOKENS),)](
        dz, y, v, logits, factor, dy, dv, dl, common, delta, tokens, v_stride, dl.stride(0),
        0 if common is None else common.stride(0), 0.0 if gate is None else gate.k, heads, kv_heads, dim, TOKENS,
        v is not None, gate is not None, factor is not None, common is not None,
        0 if gate is None else triton.next_power_of_2(gate.columns), delta is not None,
        num_warps=WARPS,
    )  # fmt: skip
    return dy, dv
