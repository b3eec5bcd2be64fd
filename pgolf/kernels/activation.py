"""LeakyReLU(slope)^2 between two products, and its gradient, each in one pass; gradients in float8 too.

f = p^2 for p > 0, (slope p)^2 otherwise        dp = df 2 p for p > 0, df 2 slope^2 p otherwise
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Elements of a program."""


@triton.jit
def _leaky_forward(p, f, slope2, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(p + place, mask=inside, other=0.0).to(tl.float32)
    value = value * value * tl.where(value > 0, 1.0, slope2)
    tl.store(f + place, value, mask=inside)


@triton.jit
def _leaky_backward(df, p, dp, dp8, slope2, scale8, count, BLOCK: tl.constexpr, EIGHT: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(p + place, mask=inside, other=0.0).to(tl.float32)
    leak = tl.where(value > 0, 1.0, slope2)
    grad = tl.load(df + place, mask=inside, other=0.0).to(tl.float32) * (2.0 * value * leak)
    tl.store(dp + place, grad, mask=inside)
    if EIGHT:
        eighth = tl.minimum(tl.maximum(grad * scale8, -57344.0), 57344.0)
        tl.store(dp8 + place, eighth.to(dp8.dtype.element_ty), mask=inside)


@triton.jit
def _round_gradient(x, out, scale8, count, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < count, other=0.0).to(tl.float32) * scale8
    value = tl.minimum(tl.maximum(value, -57344.0), 57344.0)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < count)


def activation_forward(p: Tensor, slope: float) -> Tensor:
    """f like p."""
    f = torch.empty_like(p)
    _leaky_forward[(triton.cdiv(p.numel(), BLOCK),)](p, f, slope**2, p.numel(), BLOCK)
    return f


def activation_backward(
    df: Tensor, p: Tensor, slope: float, scale8: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """dp, written over df; with scale8, dp times it in float8 (e5m2)."""
    dp8 = None if scale8 is None else torch.empty_like(p, dtype=torch.float8_e5m2)
    _leaky_backward[(triton.cdiv(p.numel(), BLOCK),)](
        df, p, df, dp8, slope**2, scale8 or 0.0, p.numel(), BLOCK, dp8 is not None
    )
    return df, dp8


def round_gradient(x: Tensor, scale8: float) -> Tensor:
    """x times scale8 in float8 (e5m2)."""
    out = torch.empty_like(x, dtype=torch.float8_e5m2)
    _round_gradient[(triton.cdiv(x.numel(), BLOCK),)](x, out, scale8, x.numel(), BLOCK)
    return out
