"""Exclusive self-attention and the narrow output gate, one pass forward and one backward.

    u = v / max(|v|, 1e-12), c = y . u;  z = g (y - c u),  g = sigmoid(k W n[:window])      (PR 265, 1787)
    backward, e = g dz:
        dy = e - (e . u) u        du = -(c e + (e . u) y)        dv = (du - (du . u) u) / |v|, summed over the group
        dl = dz . (y - c u) k g (1 - g);  dn[:window] = W^T dl;  dW = sum over tokens of dl n[:window]^T

y [T, H, D], v [T, Hkv, D] inside a wider matrix, n [T, d >= 16], W [H, window] float32. Either half can be left out.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.launch import rows

FORWARD_TOKENS, TOKENS = 16, 8
"""Tokens of a program, forward and backward; the fastest of 4, 8 and 16 on an H200."""
WINDOW = 16
"""Columns of n that a program reads; where the window is narrower, the weight of the others is 0."""


@triton.jit
def _gate(n, w, token, head, tokens, stride, factor, window, WINDOW: tl.constexpr):
    columns = tl.arange(0, WINDOW)[None, :]
    near = tl.load(n + token[:, None] * stride + columns, mask=(token < tokens)[:, None], other=0.0).to(tl.float32)
    weight = tl.load(w + head[:, None] * window + columns, mask=columns < window, other=0.0).to(tl.float32)
    return near, weight, tl.sigmoid(factor * tl.sum(near * weight, 1))


@triton.jit
def _unit_value(v, token, head, columns, inside, stride, D: tl.constexpr):
    """u and |v|, of key heads."""
    own = tl.load(v + token[:, None] * stride + head[:, None] * D + columns, mask=inside, other=0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(own * own, 1)), 1e-12)[:, None]
    return own / length, length


@triton.jit
def _gated_forward(
    y, v, n, w, z, tokens, v_stride, n_stride, factor, window,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, WINDOW: tl.constexpr, XSA: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    token, head, columns, inside = rows(tokens, H, D, T)
    place = (token * H + head)[:, None] * D + columns
    value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    if XSA:
        unit, _ = _unit_value(v, token, head // (H // KV), columns, inside, v_stride, D)
        value -= tl.sum(value * unit, 1)[:, None] * unit
    if GATE:
        _, _, g = _gate(n, w, token, head, tokens, n_stride, factor, window, WINDOW)
        value *= g[:, None]
    tl.store(z + place, value, mask=inside)


@triton.jit
def _gated_backward(
    dz, y, v, n, w, dy, dv, dn, dw, tokens, v_stride, n_stride, factor, window,
    H: tl.constexpr, KV: tl.constexpr, D: tl.constexpr, T: tl.constexpr, WINDOW: tl.constexpr, XSA: tl.constexpr,
    GATE: tl.constexpr,
):  # fmt: skip
    token, head, columns, inside = rows(tokens, H, D, T)
    place = (token * H + head)[:, None] * D + columns
    value = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    e = tl.load(dz + place, mask=inside, other=0.0).to(tl.float32)
    rest = value
    if XSA:
        unit, length = _unit_value(v, token, head // (H // KV), columns, inside, v_stride, D)
        c = tl.sum(value * unit, 1)[:, None]
        rest = value - c * unit
    if GATE:
        near, weight, g = _gate(n, w, token, head, tokens, n_stride, factor, window, WINDOW)
        dl = (tl.sum(e * rest, 1) * (factor * g * (1.0 - g)))[:, None]
        e *= g[:, None]
        narrow = tl.arange(0, WINDOW)[None, :]
        dn_token = tl.sum(tl.reshape(dl * weight, (T, H, WINDOW)), 1)
        row_token = (tl.program_id(0) * T + tl.arange(0, T)).to(tl.int64)[:, None]
        tl.store(dn + row_token * WINDOW + narrow, dn_token, mask=(row_token < tokens) & (narrow < WINDOW))
        dw_head = tl.sum(tl.reshape(dl * near, (T, H, WINDOW)), 0)
        tl.store(dw + (tl.program_id(0) * H + tl.arange(0, H))[:, None] * WINDOW + narrow, dw_head)
    if XSA:
        along = tl.sum(e * unit, 1)[:, None]
        du = -(c * e + along * value)
        dv_head = (du - tl.sum(du * unit, 1)[:, None] * unit) / length
        group = tl.sum(tl.reshape(dv_head, (T * KV, H // KV, D)), 1)
        row_value = (tl.arange(0, T * KV).to(tl.int64) + tl.program_id(0).to(tl.int64) * (T * KV))[:, None]
        tl.store(dv + row_value * D + columns, group, mask=(row_value < tokens * KV) & (columns < D))
        e -= along * unit
    tl.store(dy + place, e, mask=inside)


class Gate(NamedTuple):
    """The gate's input, weight and factor."""

    n: Tensor
    weight: Tensor
    factor: float


def _sizes(y: Tensor, v: Tensor | None, gate: Gate | None, at_once: int) -> tuple[Any, ...]:
    """What both kernels are told besides tensors."""
    tokens, heads, dim = y.shape
    v_stride, kv_heads = (0, heads) if v is None else (v.stride(0), v.size(1))
    n_stride, factor, window = (0, 0.0, 0) if gate is None else (gate.n.stride(0), gate.factor, gate.weight.size(1))
    forms = v is not None, gate is not None
    return tokens, v_stride, n_stride, factor, window, heads, kv_heads, dim, at_once, WINDOW, *forms


def gated_forward(y: Tensor, v: Tensor | None, gate: Gate | None) -> Tensor:
    """z [T, H, D]; v is None without XSA."""
    y, z = y.contiguous(), y.new_empty(y.shape)
    n, w = (None, None) if gate is None else gate[:2]
    _gated_forward[(triton.cdiv(len(y), FORWARD_TOKENS),)](y, v, n, w, z, *_sizes(y, v, gate, FORWARD_TOKENS))
    return z


class GatedGradients(NamedTuple):
    """Gradients; of what is not there, None."""

    y: Tensor
    v: Tensor | None
    """[T, Hkv, D]."""
    n: Tensor | None
    """Of the first WINDOW columns [T, WINDOW]."""
    weight: Tensor | None
    """[H, window], float32."""


def gated_backward(dz: Tensor, y: Tensor, v: Tensor | None, gate: Gate | None) -> GatedGradients:
    """dz [T, H, D] contiguous, like y."""
    y, (tokens, heads, _) = y.contiguous(), y.shape
    blocks, dy = triton.cdiv(tokens, TOKENS), y.new_empty(y.shape)
    dv = None if v is None else y.new_empty(v.shape)
    if gate is None:
        _gated_backward[(blocks,)](dz, y, v, None, None, dy, dv, None, None, *_sizes(y, v, gate, TOKENS))
        return GatedGradients(dy, dv, None, None)
    dn, dw = y.new_empty(tokens, WINDOW), y.new_empty(blocks, heads, WINDOW, dtype=torch.float32)
    _gated_backward[(blocks,)](dz, y, v, gate.n, gate.weight, dy, dv, dn, dw, *_sizes(y, v, gate, TOKENS))
    return GatedGradients(dy, dv, dn, dw.sum(0)[:, : gate.weight.size(1)])
