"""Gradients of weights as products of 8-bit floats, which read both operands along the tokens they sum over.

    dW = a^T b = s_a s_b sum over tokens of a8 b8,     a8 [n, N], b8 [d, N] float8_e4m3fn

Over tokens there is one scale a tensor, never one a row, so what rows are multiplied by goes into an operand before it
is rounded. The scale is a power of two that brings typical entries near 1/16, found from the root mean square of a few
rows: from 1/4 to 7,000 times typical ones entries keep 3 bits of fraction, and smaller ones add as little error as they
add to the sum. The product that makes a gradient of hidden units writes it across rows itself
(`pgolf.kernels.stream_products`); this pass does it for the stream.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels import float8
from pgolf.kernels.float8 import Eighth

LARGEST = tl.constexpr(float8.LARGEST)
LEAST = tl.constexpr(1e-30)
"""Of a root mean square: its inverse is a number of float32."""
ROOM = tl.constexpr(4)
"""Octaves that typical entries are below 1. Where rows differ by factors e^(2.5 x) of normal x, the error of dW is 4 %
with 4 or 5, and 10 to 25 % with 2, by clipping; where they differ less, all of these are alike.
"""
SAMPLES = 32
"""Rows, evenly spread, that the scale is found from, by every program for itself: cheaper than one more kernel."""
TOKENS, COLUMNS, WARPS = 128, 128, 8
"""Of a program: whole lines of memory on both sides."""


@triton.jit
def _factors(factor, rows, inside, FACTORED: tl.constexpr):
    """[rows, 1]."""
    return tl.load(factor + rows, mask=inside, other=0.0)[:, None] if FACTORED else 1.0


@triton.jit
def _transpose(
    x, factor, values, scale, tokens, step, D: tl.constexpr, BLOCK: tl.constexpr, FACTORED: tl.constexpr,
    SAMPLES: tl.constexpr, T: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    rows, columns = tl.arange(0, SAMPLES).to(tl.int64) * step, tl.arange(0, BLOCK)[None, :]
    inside = rows < tokens
    sample = tl.load(x + rows[:, None] * D + columns, mask=inside[:, None] & (columns < D), other=0.0).to(tl.float32)
    sample *= _factors(factor, rows, inside, FACTORED)
    count = tl.sum(inside.to(tl.int32)) * D
    octave = tl.floor(tl.log2(tl.maximum(tl.sqrt(tl.sum(sample * sample) / count), LEAST)) + 0.5) + ROOM

    rows = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    columns = (tl.program_id(1) * C + tl.arange(0, C))[None, :]
    inside = rows < tokens
    value = tl.load(x + rows[:, None] * D + columns, mask=inside[:, None] & (columns < D), other=0.0).to(tl.float32)
    value *= _factors(factor, rows, inside, FACTORED) * tl.exp2(-octave)
    eighth = tl.minimum(tl.maximum(value, -LARGEST), LARGEST).to(values.dtype.element_ty)
    across = tl.trans(columns).to(tl.int64) * tokens + rows[None, :]
    tl.store(values + across, tl.trans(eighth), mask=inside[None, :] & (tl.trans(columns) < D))
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(scale, tl.exp2(octave))


def transposed(x: Tensor, factor: Tensor | None = None) -> Eighth:
    """x [N, d], contiguous, its rows times `factor` [N], as [d, N]."""
    tokens, width = x.shape
    values, scale = x.new_empty(width, tokens, dtype=float8.KIND), x.new_empty((), dtype=torch.float32)
    _transpose[(triton.cdiv(tokens, TOKENS), triton.cdiv(width, COLUMNS))](
        x, x if factor is None else factor, values, scale, tokens, max(1, tokens // SAMPLES), width,
        triton.next_power_of_2(width), factor is not None, SAMPLES, TOKENS, COLUMNS, num_warps=WARPS,
    )  # fmt: skip
    return Eighth(values, scale)


def weight_gradient8(g: Eighth, x: Eighth) -> Tensor:
    """g^T x [out, in], float32, of g [out, N] and x [in, N]. Sums leave the matrix unit, which keeps 14 bits of them,
    every few steps: there are many tokens.
    """
    if g.values.device.type == "cuda":
        return torch._scaled_mm(
            g.values, x.values.T, scale_a=g.scale, scale_b=x.scale, out_dtype=torch.float32, use_fast_accum=False
        )
    return (g.values.float() @ x.values.float().T) * (g.scale * x.scale)
