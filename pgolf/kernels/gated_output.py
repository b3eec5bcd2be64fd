"""Exclusive self-attention and the narrow output gate, one pass forward and one backward.

    s = max(v . v, 1e-24), a = y . v / s;  z = g (y - a v),  g = sigmoid(k W n[:window])      (PR 265, 1787)
    backward, b = dz . v / s:
        dy = g (dz - b v);  dv = -g (a (dz - b v) + b (y - a v)), summed over the group
        delta = dy . y = g (dz . y - a b s);  dl = delta k (1 - g)
        dn[:window] = W^T dl;  dW = sum over tokens of dl n[:window]^T

So a head takes four sums over its dimensions: y . v, dz . v, dz . y and v . v. y [T, H, D], v [T, Hkv, D] inside a
wider matrix, n [T, d >= 16], W [H, window] float32. Either half can be left out. The gates g are kept for the backward
pass; what follows from delta [T, H] is a small pass of its own.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import rows, shares

FORWARD_TOKENS = 16
"""Tokens of a program; the fastest of 4, 8 and 16 on an H200."""
TOKENS, WARPS = 4, 4
"""Tokens and warps of a program of the backward pass."""
GATE_TOKENS = 32
"""Tokens that a program of the gate's backward pass takes at once."""
WINDOW = 16
"""Columns of n that a program reads; where the window is narrower, the weight of the others is 0."""


@triton.jit
def _gated_forward(
    y, v, n, w, z, gates, tokens, v_stride, n_stride, factor, window,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, WINDOW: tl.constexpr, XSA: tl.constexpr,
    GATE: tl.constexpr,
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
        gate = tl.sigmoid(factor * tl.sum(near * weight, 1))
        tl.store(gates + token * H + head, gate, mask=there)
        value *= gate[:, None]
    tl.store(z + place, value, mask=inside)


@triton.jit
def _gated_backward(
    dz, y, v, gates, dy, dv, delta, tokens, v_stride,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, XSA: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """A tile is [tokens and key heads, query heads of a key head, D], and dv a sum over its second axis."""
    each = tl.arange(0, T * KV)[:, None, None]
    token, key = (tl.program_id(0) * T + each // KV).to(tl.int64), each % KV
    columns = tl.arange(0, D)[None, None, :]
    there = token < tokens
    inside = there & (columns < D)
    row = token * H + key * (H // KV) + tl.arange(0, H // KV)[None, :, None]
    value = tl.load(y + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(dz + row * D + columns, mask=inside, other=0.0).to(tl.float32)
    gate = 1.0
    if GATE:
        gate = tl.load(gates + row, mask=there, other=0.0)
    product = tl.sum(e * value, 2, keep_dims=True)
    if XSA:
        own = tl.load(v + token * v_stride + key * D + columns, mask=inside, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.maximum(tl.sum(own * own, 2, keep_dims=True), 1e-24)
        y_v = tl.sum(value * own, 2, keep_dims=True)
        a, b = y_v * inverse, tl.sum(e * own, 2, keep_dims=True) * inverse
        product -= y_v * b
        e -= b * own
        value -= a * own
        dv_heads = (gate * a) * e + (gate * b) * value
        tl.store(dv + (token * KV + key) * D + columns, -tl.sum(dv_heads, 1, keep_dims=True), mask=inside)
    if GATE:
        tl.store(delta + row, gate * product, mask=there)
    tl.store(dy + row * D + columns, gate * e, mask=inside)


@triton.jit
def _gate_backward(
    delta, gates, n, w, dn, dw, tokens, turns, n_stride, factor, window,
    H: tl.constexpr, T: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A program takes `turns` times T tokens and adds up its own dW."""
    head, narrow = tl.arange(0, H)[None, :], tl.arange(0, WINDOW)[None, :]
    w_place = tl.arange(0, H)[:, None] * window + narrow
    weight = tl.load(w + w_place, mask=narrow < window, other=0.0).to(tl.float32)
    total = tl.zeros((H, WINDOW), tl.float32)
    for turn in tl.range(turns):
        token = ((tl.program_id(0) * turns + turn) * T + tl.arange(0, T)).to(tl.int64)[:, None]
        there = token < tokens
        gate = tl.load(gates + token * H + head, mask=there, other=0.0)
        dl = tl.load(delta + token * H + head, mask=there, other=0.0) * (1.0 - gate) * factor
        near = tl.load(n + token * n_stride + narrow, mask=there, other=0.0).to(tl.float32)
        tl.store(dn + token * WINDOW + narrow, tl.sum(dl[:, :, None] * weight[None, :, :], 1), mask=there)
        total += tl.sum(dl[:, :, None] * near[:, None, :], 0)
    tl.store(dw + tl.program_id(0) * H * WINDOW + tl.arange(0, H)[:, None] * WINDOW + narrow, total)


class Gate(NamedTuple):
    """The gate's input, weight and factor."""

    n: Tensor
    weight: Tensor
    factor: float


def _values(y: Tensor, v: Tensor | None) -> tuple[int, int]:
    """From one token's values to the next's, and key heads."""
    return (0, y.size(1)) if v is None else (v.stride(0), v.size(1))


def gated_forward(y: Tensor, v: Tensor | None, gate: Gate | None) -> tuple[Tensor, Tensor | None]:
    """z [T, H, D] and the gates [T, H] float32; v is None without XSA."""
    y, (tokens, heads, dim) = y.contiguous(), y.shape
    z, gates = y.new_empty(y.shape), None if gate is None else y.new_empty(tokens, heads, dtype=torch.float32)
    n, w, n_stride, factor, window = (None, None, 0, 0.0, 0) if gate is None else _gate_arguments(gate)
    v_stride, kv_heads = _values(y, v)
    _gated_forward[(triton.cdiv(tokens, FORWARD_TOKENS),)](
        y, v, n, w, z, gates, tokens, v_stride, n_stride, factor, window, heads, kv_heads, dim, FORWARD_TOKENS, WINDOW,
        v is not None, gate is not None,
    )  # fmt: skip
    return z, gates


def _gate_arguments(gate: Gate) -> tuple[Tensor, Tensor, int, float, int]:
    return gate.n, gate.weight, gate.n.stride(0), gate.factor, gate.weight.size(1)


class GatedGradients(NamedTuple):
    """Gradients; of what is not there, None."""

    y: Tensor
    v: Tensor | None
    """[T, Hkv, D]."""
    n: Tensor | None
    """Of the first WINDOW columns [T, WINDOW]."""
    weight: Tensor | None
    """[H, window], float32."""


def gated_backward(
    dz: Tensor, y: Tensor, v: Tensor | None, gate: Gate | None, gates: Tensor | None
) -> GatedGradients:  # fmt: skip
    """dz [T, H, D] contiguous, like y; gates as `gated_forward` returned them."""
    y, (tokens, heads, dim) = y.contiguous(), y.shape
    dy, dv = y.new_empty(y.shape), None if v is None else y.new_empty(v.shape)
    delta = None if gates is None else torch.empty_like(gates)
    v_stride, kv_heads = _values(y, v)
    _gated_backward[(triton.cdiv(tokens, TOKENS),)](
        dz, y, v, gates, dy, dv, delta, tokens, v_stride, heads, kv_heads, dim, TOKENS, v is not None,
        gate is not None, num_warps=WARPS,
    )  # fmt: skip
    if gate is None:
        return GatedGradients(dy, dv, None, None)
    programs, turns = shares(y.device, triton.cdiv(tokens, GATE_TOKENS))
    dn, dw = y.new_empty(tokens, WINDOW), y.new_empty(programs, heads, WINDOW, dtype=torch.float32)
    n, w, n_stride, factor, window = _gate_arguments(gate)
    _gate_backward[(programs,)](
        delta, gates, n, w, dn, dw, tokens, turns, n_stride, factor, window, heads, GATE_TOKENS, WINDOW
    )
    return GatedGradients(dy, dv, dn, dw.sum(0)[:, :window])
