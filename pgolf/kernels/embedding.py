"""The embedding in one pass: rows of the table, smear and norm; its gradient without atomic additions.

    h_t = e_t + l a_t e_(t-1),  a_t = sigmoid(w . e_t[:window]) or 0,  y_t = q_t h_t,  q = 1 / sqrt(mean(h^2) + eps)
    backward:
        dh_t = q_t (dy_t - y_t mean(dy_t y_t)),  da_t = l dh_t . e_(t-1),  dp_t = da_t a_t (1 - a_t)
        de_t = dh_t + l a_(t+1) dh_(t+1) + dp_t w,   dw = sum_t dp_t e_t[:window],  dl = sum_t a_t dh_t . e_(t-1)
        dE_v = sum of de_t over the tokens whose id is v

as in `GPT.embed` and `pgolf.model.smear`; a is 0 where nothing is smeared into a token. The forward pass keeps q and a;
rows are read again from the table, which the cache holds. For the gradient, tokens are sorted by id and shared out
evenly, however frequent an id is. A program adds up the tokens of an id in registers and writes the row, in the type of
the table. An id that lies across programs leaves a part in each of them, and a second kernel joins these: the order of
all sums is fixed. A token reads its own dy and that of the token after it, its neighbour in memory, so dh_(t+1) is
found twice and stored nowhere.
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
POSITIONS = 42
"""Tokens of a program of the backward pass, a single warp: all programs for 98,304 run at once."""
REGISTERS = 112
"""Of its threads, the least without spills: 18 of the warps are on a multiprocessor."""
PARTS = 16
"""Parts of an id that are joined at a time."""


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
def _norm_share(d, h, q, D: tl.constexpr):
    """What the gradient of h has of it: dh = q (d - share h)."""
    return q * q * (tl.sum(d * h, 0) / D)


@triton.jit
def _leave(total, key, before, after, grad, parts, columns, D: tl.constexpr):
    """An id's sum: its row, or a part where the program before (0) or only the one after (1) has tokens of it too."""
    if (key == before) | (key == after):
        place = tl.program_id(0) * 2 + (key != before).to(tl.int32)
        tl.store(parts + place.to(tl.int64) * D + columns, total, mask=columns < D)
    else:
        tl.store(grad + key.to(tl.int64) * D + columns, total, mask=columns < D)


@triton.jit
def _neighbours(ids, token, tokens, SMEAR: tl.constexpr):
    """The ids before and after a token, and where the one after it is; at the ends any."""
    past, later, next = token, token, token
    if SMEAR:
        later = tl.minimum(token + 1, tokens - 1)
        past = tl.load(ids + tl.maximum(token - 1, 0)).to(tl.int64)
        next = tl.load(ids + later).to(tl.int64)
    return past, next, later


@triton.jit
def _embed_backward(
    dy, keys, order, ids, table, gate, strength, inverse, opened, grad, parts, sums, tokens,
    POSITIONS: tl.constexpr, WINDOW: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    SMEAR: tl.constexpr,
):  # fmt: skip
    columns, narrow = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    inside = columns < D
    begin = tl.program_id(0) * POSITIONS
    end = tl.minimum(begin + POSITIONS, tokens)
    before = tl.load(keys + begin - 1, mask=begin > 0, other=-1)
    key = tl.load(keys + begin)
    e = tl.load(table + key.to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if SMEAR:
        scale = tl.load(strength).to(tl.float32)
        of_gate = tl.zeros((WIDE,), tl.float32)
        of_strength, pull = 0.0, 0.0
    new, token = key, tl.load(order + begin)
    past, next, later = _neighbours(ids, token, tokens, SMEAR)
    for position in tl.range(begin, end):
        coming = tl.minimum(position + 1, end - 1)  # one ahead, so that nothing waits for two loads
        key_coming, token_coming = tl.load(keys + coming), tl.load(order + coming)
        if new != key:
            if SMEAR:
                w = tl.load(gate + columns, mask=columns < WINDOW, other=0.0).to(tl.float32)
                start = tl.load(table + key.to(tl.int64) * D + narrow, mask=narrow < WINDOW, other=0.0)
                total += pull * w
                of_gate += pull * start.to(tl.float32)
                pull = 0.0
            _leave(total, key, before, new, grad, parts, columns, D)
            key = new
            e = tl.load(table + key.to(tl.int64) * D + columns, mask=inside, other=0.0).to(tl.float32)
            total = tl.zeros((BLOCK,), tl.float32)
        d = tl.load(dy + token * D + columns, mask=inside, other=0.0).to(tl.float32)
        q = tl.load(inverse + token)
        if SMEAR:
            a, a_later = tl.load(opened + token), tl.load(opened + later, mask=later > token, other=0.0)
            q_later = tl.load(inverse + later)
            d_later = tl.load(dy + later * D + columns, mask=inside, other=0.0).to(tl.float32)
            e_past = tl.load(table + past * D + columns, mask=inside, other=0.0).to(tl.float32)
            e_later = tl.load(table + next * D + columns, mask=inside, other=0.0).to(tl.float32)
            share, share_later = scale * a, scale * a_later
            h, h_later = e + share * e_past, e_later + share_later * e
            dh = q * d - (q * _norm_share(d, h, q, D)) * h
            found = a * tl.sum(dh * e_past, 0)
            of_strength += found
            pull += scale * found * (1.0 - a)
            q_share = share_later * q_later
            total += dh + q_share * d_later - (q_share * _norm_share(d_later, h_later, q_later, D)) * h_later
        else:
            total += q * d - (q * _norm_share(d, e, q, D)) * e
        new, token = key_coming, token_coming
        past, next, later = _neighbours(ids, token, tokens, SMEAR)
    if SMEAR:
        w = tl.load(gate + columns, mask=columns < WINDOW, other=0.0).to(tl.float32)
        start = tl.load(table + key.to(tl.int64) * D + narrow, mask=narrow < WINDOW, other=0.0)
        total += pull * w
        of_gate += pull * start.to(tl.float32)
        tl.store(sums + tl.program_id(0) * WIDE + narrow, tl.where(narrow == WINDOW, of_strength, of_gate))
    _leave(total, key, before, tl.load(keys + end, mask=end < tokens, other=-1), grad, parts, columns, D)


@triton.jit
def _join(
    keys, parts, grad, tokens, programs,
    POSITIONS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Of the last id of a program, if that is where it begins and not where it ends."""
    columns = tl.arange(0, BLOCK)
    begin = tl.program_id(0) * POSITIONS
    end = begin + POSITIONS
    if end < tokens:
        key = tl.load(keys + end)
        if (tl.load(keys + end - 1) == key) & (tl.load(keys + begin - 1, mask=begin > 0, other=-1) != key):
            head = (tl.program_id(0) * 2 + 1).to(tl.int64) * D + columns
            total = tl.load(parts + head, mask=columns < D, other=0.0)
            first, count = tl.program_id(0) + 1, PARTS
            while count == PARTS:
                program = first + tl.arange(0, PARTS)
                there = program < programs
                there = there & (tl.load(keys + program * POSITIONS, mask=there, other=-1) == key)
                place = (program * 2).to(tl.int64)[:, None] * D + columns[None, :]
                total += tl.sum(tl.load(parts + place, mask=there[:, None] & (columns[None, :] < D), other=0.0), 0)
                first += PARTS
                count = tl.sum(there.to(tl.int32), 0)
            tl.store(grad + key.to(tl.int64) * D + columns, total, mask=columns < D)


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
    keys, order = torch.sort(ids.flatten().int())
    programs, block = triton.cdiv(tokens, POSITIONS), triton.next_power_of_2(width)
    grad, parts = torch.zeros_like(table), table.new_empty(programs, 2, width, dtype=torch.float32)
    gate, strength, _ = smear or (None, None, -1)
    window = 0 if gate is None else gate.size(1)
    sums = table.new_empty(programs, triton.next_power_of_2(window + 1), dtype=torch.float32)
    _embed_backward[(programs,)](
        dy, keys, order, ids, table, gate, strength, inverse, opened, grad, parts, sums, tokens, POSITIONS, window,
        sums.size(1), width, block, smear is not None, num_warps=1, maxnreg=REGISTERS,
    )  # fmt: skip
    _join[(programs,)](keys, parts, grad, tokens, programs, POSITIONS, width, block, PARTS, num_warps=8)
    if smear is None:
        return EmbedGradients(grad, None, None)
    summed = column_sums(sums[None])
    return EmbedGradients(grad, summed[:, :window], summed[0, window : window + 1])
