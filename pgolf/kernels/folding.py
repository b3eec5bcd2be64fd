"""The weights of a block as its products read them, and gradients back, each as one kernel (`pgolf.train.folded`).

    fold      read = [Wq; Wk; Wv; W of the gate, 0 beyond it],  up = W1,  out = diag(a) Wo,  down = diag(m) W2
    round     read without the gate, up and down in float8, the last two transposed too (`pgolf.kernels.float8`)
    unfold    of G, the gradient of diag(a) W:  dW = diag(a) G over it,  da_r = sum over k of W_rk G_rk

All in float32 but what the first two write. A program takes a few rows of one matrix, or a tile, whose number is
counted down to it. What is rounded is what was folded, by its largest entry: each program of `fold` leaves that of its
rows.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import itertools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels import float8
from pgolf.kernels.float8 import Eighth

FOLD_ROWS, UNFOLD_ROWS = 8, 4
"""Rows of a program, as many columns at a time as the model is wide."""
ROUND_TILE = 64
"""Rows and columns of a program."""
LARGEST, LEAST = tl.constexpr(float8.LARGEST), tl.constexpr(float8.LEAST)


@triton.jit
def _fold_rows(
    w, scale, target, most, block, rows, there, width, target_width, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Of a target of `rows`; what w [there, width] lacks is 0. Their largest entry, as written, goes to `most`."""
    row = (block * ROWS + tl.arange(0, ROWS))[:, None]
    largest = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, target_width, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        value = tl.load(w + row * width + columns, mask=(row < there) & (columns < width), other=0.0).to(tl.float32)
        if SCALED:
            value *= tl.load(scale + row, mask=row < rows, other=0.0)
        written = value.to(target.dtype.element_ty)
        tl.store(target + row * target_width + columns, written, mask=(row < rows) & (columns < target_width))
        largest = tl.maximum(largest, tl.abs(written.to(tl.float32)))
    if most is not None:
        tl.store(most + tl.program_id(0), tl.max(tl.max(largest, 1), 0))


@triton.jit
def _fold(
    query, key, value, gate, up, out, down, a, m, read, up_to, out_to, down_to, most,
    query_end, key_end, value_end, gate_end, up_end, out_end, Q, K, GATE, GATE_ROWS, UP, OUT,
    width, inner, units, window, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < query_end:
        _fold_rows(query, a, read, most, block, Q, Q, width, width, ROWS, BLOCK, False)
    elif block < key_end:
        _fold_rows(key, a, read + Q * width, most, block - query_end, K, K, width, width, ROWS, BLOCK, False)
    elif block < value_end:
        _fold_rows(value, a, read + (Q + K) * width, most, block - key_end, K, K, width, width, ROWS, BLOCK, False)
    elif block < gate_end:
        below = read + (Q + 2 * K) * width
        _fold_rows(gate, a, below, most, block - value_end, GATE_ROWS, GATE, window, width, ROWS, BLOCK, False)
    elif block < up_end:
        _fold_rows(up, a, up_to, most, block - gate_end, UP, UP, width, width, ROWS, BLOCK, False)
    elif block < out_end:
        _fold_rows(out, a, out_to, most, block - up_end, OUT, OUT, inner, inner, ROWS, BLOCK, True)
    else:
        _fold_rows(down, m, down_to, most, block - out_end, OUT, OUT, units, units, ROWS, BLOCK, True)


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
    return _folded(w, gate_rows, a, m, dtype, None)


def fold_and_round(
    w: Matrices, gate_rows: int, a: Tensor, m: Tensor, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], tuple[Eighth, ...]]:
    """What `fold` returns, and in float8 read without the gate, up, down, up^T and down^T: w / s, s = max |w| / 448."""
    ends, blocks = _programs(w, gate_rows)
    most = a.new_empty(blocks, dtype=torch.float32)
    read, up, _, down = folded = _folded(w, gate_rows, a, m, dtype, most)
    sizes = (len(read) - gate_rows, read.size(1)), up.shape, down.shape
    qkv8, up8, down8 = (read.new_empty(shape, dtype=float8.KIND) for shape in sizes)
    up_across, down_across = (x.new_empty(x.shape[::-1]) for x in (up8, down8))
    scales = a.new_empty(3, 4, dtype=torch.float32)  # each at a multiple of 16 bytes
    *tiles, programs = itertools.accumulate(
        triton.cdiv(rows, ROUND_TILE) * triton.cdiv(width, ROUND_TILE) for rows, width in sizes
    )
    _, _, value_end, gate_end, up_end, out_end = ends
    parts = triton.next_power_of_2(max(value_end, up_end - gate_end, blocks - out_end))
    _round[(programs,)](
        read, up, down, most, scales, qkv8, up8, down8, up_across, down_across, *tiles, value_end, gate_end, up_end,
        out_end, blocks, *sizes[0], *sizes[1], *sizes[2], parts, ROUND_TILE,
    )  # fmt: skip
    of_qkv, of_up, of_down = scales[:, 0].unbind()
    eighths = (qkv8, of_qkv), (up8, of_up), (down8, of_down), (up_across, of_up), (down_across, of_down)
    return folded, tuple(Eighth(*each) for each in eighths)


def _programs(w: Matrices, gate_rows: int) -> tuple[list[int], int]:
    """Where the programs of each matrix but the last end, and their number."""
    counts = len(w.query), len(w.key), len(w.value), gate_rows, len(w.up), len(w.out), len(w.down)
    *ends, blocks = itertools.accumulate(triton.cdiv(count, FOLD_ROWS) for count in counts)
    return ends, blocks


def _folded(
    w: Matrices, gate_rows: int, a: Tensor, m: Tensor, dtype: torch.dtype, most: Tensor | None
) -> tuple[Tensor, ...]:
    query, key, value, gate, up, out, down = w
    width, gate = query.size(1), query[:0] if gate is None else gate
    ends, blocks = _programs(w, gate_rows)
    shapes = (len(query) + 2 * len(key) + gate_rows, width), up.shape, out.shape, down.shape
    folded = tuple(query.new_empty(shape, dtype=dtype) for shape in shapes)
    _fold[(blocks,)](
        query, key, value, gate, up, out, down, a, m, *folded, most, *ends, len(query), len(key), len(gate), gate_rows,
        len(up), len(out), width, out.size(1), down.size(1), gate.size(1), FOLD_ROWS, triton.next_power_of_2(width),
    )  # fmt: skip
    return folded


@triton.jit
def _round_tile(w, most, first, end, scale, values, across, tile, rows, width, PARTS: tl.constexpr, TILE: tl.constexpr):
    part = first + tl.arange(0, PARTS)
    largest = tl.max(tl.load(most + part, mask=part < end, other=0.0), 0)
    factor = tl.div_rn(tl.maximum(largest, LEAST), LARGEST)
    if tile == 0:
        tl.store(scale, factor)
    wide = tl.cdiv(width, TILE)
    row, column = tile // wide * TILE + tl.arange(0, TILE), tile % wide * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    value = tl.load(w + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    eighth = tl.div_rn(value, factor).to(values.dtype.element_ty)
    tl.store(values + row[:, None] * width + column[None, :], eighth, mask=inside)
    if across is not None:
        tl.store(across + column[:, None] * rows + row[None, :], tl.trans(eighth), mask=tl.trans(inside))


@triton.jit
def _round(
    qkv, up, down, most, scales, qkv8, up8, down8, up_across, down_across, qkv_tiles, up_tiles, value_end, gate_end,
    up_end, out_end, blocks, QKV, qkv_width, UP, up_width, DOWN, down_width, PARTS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if tile < qkv_tiles:
        _round_tile(qkv, most, 0, value_end, scales, qkv8, None, tile, QKV, qkv_width, PARTS, TILE)
    elif tile < up_tiles:
        tile -= qkv_tiles
        _round_tile(up, most, gate_end, up_end, scales + 4, up8, up_across, tile, UP, up_width, PARTS, TILE)
    else:
        tile -= up_tiles
        _round_tile(down, most, out_end, blocks, scales + 8, down8, down_across, tile, DOWN, down_width, PARTS, TILE)


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
