"""The embedding in one pass: rows of the table, smear and norm; its gradient in another.

    h_t = e_t + l a_t e_(t-1),  a_t = sigmoid(w . e_t[:window]) or 0,  y_t = q_t h_t,  q = 1 / sqrt(mean(h^2) + eps)
    backward:
        dh_t = q_t (dy_t - y_t mean(dy_t y_t)),  da_t = l dh_t . e_(t-1),  dp_t = da_t a_t (1 - a_t)
        de_t = dh_t + l a_(t+1) dh_(t+1) + dp_t w,   dw = sum_t dp_t e_t[:window],  dl = sum_t a_t dh_t . e_(t-1)
        dE_v = sum of de_t over the tokens whose id is v

as in `GPT.embed` and `pgolf.model.smear`; a is 0 where nothing is smeared into a token. The forward pass keeps q and a;
rows are read again from the table, which the cache holds. The backward pass goes through tokens from the last to the
first: what a token's gradient is to the token before it is kept in registers, and dy is read once. Rows of dE are added
up by the cache, in float32 and any order: over tokens sorted by id the pass takes a third longer.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.column_sums import column_sums
from pgolf.kernels.residual_norm import EPS

FORWARD_ROWS = 4
"""Tokens of a program."""
CHUNK = 48
"""Tokens of a program of the backward pass; the fastest of 24, 32 and 48 on an H100."""
COLUMNS_PER_WARP = 512
"""That a warp of it holds: a single warp at the widths of this challenge."""


@triton.jit
def _embed_forward(
    ids, table, gate, strength, out, inverse, opened, tokens, length,
    WINDOW: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SMEAR: tl.constexpr,
    BOS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    there = rows < tokens
    inside = there[:, None] & (columns < D)
    token = tl.load(ids + rows, mask=there, other=0).to(tl.int64)
    value = tl.load(table + token[:, None] * D + columns, mask=inside, other=0.0).to(tl.float32)
    if SMEAR:
        follows = there & (rows % length != 0)
        before = tl.load(ids + rows - 1, mask=follows, other=0).to(tl.int64)
        follows = follows & (token != BOS)
        w = tl.load(gate + columns, mask=columns < WINDOW, other=0.0).to(tl.float32)
        past = tl.load(table + before[:, None] * D + columns, mask=inside & follows[:, None], other=0.0)
        a = tl.where(follows, tl.sigmoid(tl.sum(value * w, 1)), 0.0)
        tl.store(opened + rows, a, mask=there)
        value += past.to(tl.float32) * (a * tl.load(strength).to(tl.float32))[:, None]
    q = tl.rsqrt(tl.sum(value * value, 1) / D + EPS)
    tl.store(inverse + rows, q, mask=there)
    tl.store(out + rows.to(tl.int64)[:, None] * D + columns, value * q[:, None], mask=inside)


@triton.jit
def _past_norm(d, h, q, D: tl.constexpr):
    """dh."""
    return q * d - (q * q * q * (tl.sum(d * h, 0) / D)) * h


@triton.jit
def _embed_backward(
    dy, ids, table, gate, strength, inverse, opened, grad, sums, tokens,
    CHUNK: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    SMEAR: tl.constexpr,
):  # fmt: skip
    columns, narrow = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = columns < D
    begin = tl.program_id(0) * CHUNK
    end = tl.minimum(begin + CHUNK, tokens)
    e = tl.load(table + tl.load(ids + end - 1).to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
    if SMEAR:
        scale = tl.load(strength).to(tl.float32)
        w = tl.load(gate + columns, mask=columns < WINDOW, other=0.0).to(tl.float32)
        of_gate, of_strength = tl.zeros((WIDE,), tl.float32), 0.0
        later = tl.zeros((BLOCK,), tl.float32)  # l a_(t+1) dh_(t+1)
        if end < tokens:
            share = scale * tl.load(opened + end)
            h = tl.load(table + tl.load(ids + end).to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
            d = tl.load(dy + end.to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
            later = share * _past_norm(d, h + share * e, tl.load(inverse + end), D)
    for back in tl.range(0, end - begin):
        token = (end - 1 - back).to(tl.int64)
        key = tl.load(ids + token).to(tl.int64)
        past = tl.load(ids + tl.maximum(token - 1, 0)).to(tl.int64)
        e_past = tl.load(table + past * D + columns, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dy + token * D + columns, mask=inside, other=0.0).to(tl.float32)
        q = tl.load(inverse + token)
        if SMEAR:
            a = tl.load(opened + token)
            dh = _past_norm(d, e + scale * a * e_past, q, D)
            found = a * tl.sum(dh * e_past, 0)
            of_strength += found
            pull = scale * found * (1.0 - a)
            of_gate += pull * tl.load(table + key * D + narrow, mask=narrow < WINDOW, other=0.0).to(tl.float32)
            total = dh + later + pull * w
            later = scale * a * dh
        else:
            total = _past_norm(d, e, q, D)
        tl.atomic_add(grad + key * D + columns, total, mask=inside, sem="relaxed")
        e = e_past
    if SMEAR:
        tl.store(sums + tl.program_id(0) * WIDE + narrow, tl.where(narrow == WINDOW, of_strength, of_gate))


class Smear(NamedTuple):
    """What of `pgolf.model.smear` is not the table."""

    gate: Tensor
    """w [1, window]."""
    strength: Tensor
    """l [1]."""
    bos: int
    """The id that is not smeared into; -1 for none."""


class Embedded(NamedTuple):
    """What the forward pass leaves."""

    x0: Tensor
    """y [B, T, d]."""
    inverse: Tensor
    """q [B T], float32."""
    opened: Tensor | None
    """a [B T], float32."""


def embed_forward(ids: Tensor, table: Tensor, smear: Smear | None, dtype: torch.dtype) -> Embedded:
    """ids [B, T] contiguous, table [V, d] contiguous; x0 is of `dtype`."""
    tokens, width = ids.numel(), table.size(1)
    x0, inverse = table.new_empty(*ids.shape, width, dtype=dtype), table.new_empty(tokens, dtype=torch.float32)
    opened = None if smear is None else torch.empty_like(inverse)
    gate, strength, bos = smear or (None, None, -1)
    _embed_forward[(triton.cdiv(tokens, FORWARD_ROWS),)](
        ids, table, gate, strength, x0, inverse, opened, tokens, ids.size(-1), 0 if gate is None else gate.size(1),
        width, triton.next_power_of_2(width), FORWARD_ROWS, smear is not None, bos,
    )  # fmt: skip
    return Embedded(x0, inverse, opened)


class EmbedGradients(NamedTuple):
    """Gradients."""

    table: Tensor
    """[V, d], in its type."""
    gate: Tensor | None
    """[1, window], float32."""
    strength: Tensor | None
    """[1], float32."""


def embed_backward(
    dy: Tensor, ids: Tensor, table: Tensor, smear: Smear | None, inverse: Tensor, opened: Tensor | None
) -> EmbedGradients:
    """dy [B, T, d] contiguous, the others as `embed_forward` had and left them."""
    tokens, width = ids.numel(), table.size(1)
    programs, block = triton.cdiv(tokens, CHUNK), triton.next_power_of_2(width)
    grad = torch.zeros_like(table, dtype=torch.float32)
    gate, strength, _ = smear or (None, None, -1)
    window = 0 if gate is None else gate.size(1)
    sums = table.new_empty(programs, triton.next_power_of_2(window + 1), dtype=torch.float32)
    _embed_backward[(programs,)](
        dy, ids, table, gate, strength, inverse, opened, grad, sums, tokens, CHUNK, window, sums.size(1), width,
        block, smear is not None, num_warps=max(1, min(16, block // COLUMNS_PER_WARP)),
    )  # fmt: skip
    grad = grad.to(table.dtype)
    if smear is None:
        return EmbedGradients(grad, None, None)
    summed = column_sums(sums[None])
    return EmbedGradients(grad, summed[:, :window], summed[0, window : window + 1])
