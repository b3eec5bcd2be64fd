"""The weights of a block as its products read them, and gradients back, each as one kernel (`pgolf.train.folded`).

    fold      read = [Wq; Wk; Wv; W of the gate, 0 beyond it],  up = W1,  out = diag(a) Wo,  down = diag(m) W2
    unfold    of G, the gradient of diag(a) W:  dW = diag(a) G over it,  da_r = sum over k of W_rk G_rk

All in float32 but what `fold` writes. A program takes a few rows of one matrix, whose number is counted down to it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FOLD_ROWS, UNFOLD_ROWS = 8, 4
"""Rows of a program, as many columns at a time as the model is wide."""


@triton.jit
def _fold_rows(
    w, scale, target, block, rows, there, width, target_width, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Of a target of `rows`; what w [there, width] lacks is 0."""
    row = (block * ROWS + tl.arange(0, ROWS))[:, None]
    for start in tl.range(0, target_width, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        value = tl.load(w + row * width + columns, mask=(row < there) & (columns < width), other=0.0).to(tl.float32)
        if SCALED:
            value *= tl.load(scale + row, mask=row < rows, other=0.0)
        tl.store(target + row * target_width + columns, value, mask=(row < rows) & (columns < target_width))


@triton.jit
def _fold(
    query, key, value, gate, up, out, down, a, m, read, up_to, out_to, down_to,
    query_end, key_end, value_end, gate_end, up_end, out_end, Q, K, GATE, GATE_ROWS, UP, OUT,
    width, inner, units, window, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < query_end:
        _fold_rows(query, a, read, block, Q, Q, width, width, ROWS, BLOCK, False)
    elif block < key_end:
        _fold_rows(key, a, read + Q * width, block - query_end, K, K, width, width, ROWS, BLOCK, False)
    elif block < value_end:
        _fold_rows(value, a, read + (Q + K) * width, block - key_end, K, K, width, width, ROWS, BLOCK, False)
    elif block < gate_end:
        below = read + (Q + 2 * K) * width
        _fold_rows(gate, a, below, block - value_end, GATE_ROWS, GATE, window, width, ROWS, BLOCK, False)
    elif block < up_end:
        _fold_rows(up, a, up_to, block - gate_end, UP, UP, width, width, ROWS, BLOCK, False)
    elif block < out_end:
        _fold_rows(out, a, out_to, block - up_end, OUT, OUT, inner, inner, ROWS, BLOCK, True)
    else:
        _fold_rows(down, m, down_to, block - out_end, OUT, OUT, units, units, ROWS, BLOCK, True)


class Matrices(NamedTuple):
    """[out, in], contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor | None
    up: Tensor
    out: Tensor
    down: Tensor


def fold(w: Matrices, gate_rows: int, a: Tensor, m: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """read, up, out and down in `dtype`; the gate takes `gate_rows` of read, none where it is None."""
    query, key, _, gate, up, out, down = w
    width, gate = query.size(1), query[:0] if gate is None else gate
    counts = len(query), len(key), len(key), gate_rows, len(up), len(out), len(down)
    *ends, blocks = itertools.accumulate(triton.cdiv(count, FOLD_ROWS) for count in counts)
    shapes = (sum(counts[:4]), width), up.shape, out.shape, down.shape
    folded = tuple(query.new_empty(shape, dtype=dtype) for shape in shapes)
    _fold[(blocks,)](
        *w[:3], gate, *w[4:], a, m, *folded, *ends, len(query), len(key), len(gate), gate_rows, len(up), len(out),
        width, out.size(1), down.size(1), gate.size(1), FOLD_ROWS, triton.next_power_of_2(width),
    )  # fmt: skip
    return folded


@triton.jit
def _unfold_rows(g, w, scale, of_scale, block, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = block * ROWS + tl.arange(0, ROWS)
    factor = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        inside = (row[:, None] < rows) & (columns < width)
        place = row[:, None] * width + columns
        folded = tl.load(g + place, mask=inside, other=0.0)
        total += folded * tl.load(w + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(g + place, folded * factor, mask=inside)
    tl.store(of_scale + row, tl.sum(total, 1), mask=row < rows)


@triton.jit
def _unfold(
    g0, g1, w0, w1, scale0, scale1, of_scales, blocks, rows, width0, width1, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    block = tl.program_id(0)
    if block < blocks:
        _unfold_rows(g0, w0, scale0, of_scales, block, rows, width0, ROWS, BLOCK)
    else:
        _unfold_rows(g1, w1, scale1, of_scales + rows, block - blocks, rows, width1, ROWS, BLOCK)


def unfold(g: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor]) -> Tensor:
    """Of two matrices w [rows, any] whose rows were multiplied by `scales` [rows]: g, the gradients of the products in
    float32, become those of w; returns those of the scales [2, rows]. All contiguous.
    """
    rows, *widths = len(g[0]), g[0].size(1), g[1].size(1)
    of_scales, blocks = g[0].new_empty(2, rows), triton.cdiv(rows, UNFOLD_ROWS)
    _unfold[(2 * blocks,)](*g, *w, *scales, of_scales, blocks, rows, *widths, UNFOLD_ROWS, triton.next_power_of_2(rows))
    return of_scales
