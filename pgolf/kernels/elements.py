"""Functions of one element that mean the same in an epilogue on a GPU and on tensors.

An epilogue (`pgolf.kernels.epilogue`) is called once with tensors on a CPU, and once for each element of a tile when
the kernel of a GPU is traced: its arithmetic is operators, which both have, and these.
"""

from typing import Any

import torch
from torch import Tensor

try:
    from cutlass import Int32, cute
    from cutlass._mlir.extras import types as ir
    from cutlass._mlir_helpers.arith import bitcast
except ImportError:  # no CuTe DSL: tensors only
    cute = None

PLACE = 16
"""Of the last bit of a bfloat16 in a float32."""


def maximum(a: Any, b: Any) -> Any:
    """max(a, b)."""
    return torch.maximum(a, b) if isinstance(a, Tensor) else cute.arch.fmax(a, b)


def clipped(x: Any, most: float) -> Any:
    """x, within -most and most."""
    return x.clamp(-most, most) if isinstance(x, Tensor) else cute.arch.fmax(cute.arch.fmin(x, most), -most)


def root(x: Any) -> Any:
    """The square root of x >= 0."""
    return x.sqrt() if isinstance(x, Tensor) else cute.math.sqrt(x, fastmath=True)


def _bits(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.float().contiguous().view(torch.int32)
    return Int32(bitcast(x.ir_value(), ir.i32()))


def _number(bits: Any) -> Any:
    if isinstance(bits, Tensor):
        return bits.view(torch.float32)
    return cute.Float32(bitcast(bits.ir_value(), ir.f32()))


def marked(f: Any, p: Any) -> Any:
    """f >= 0 rounded to bfloat16 with the sign of p as its last bit: to even multiples of the last place where p >= 0,
    to odd ones where p < 0. Its error is at most one last place, and is 0 on average.
    """
    mark = (_bits(p) >> (31 - PLACE)) & (1 << PLACE)
    return _number(((_bits(f) + ((1 << PLACE) - mark)) & -(2 << PLACE)) | mark)


def is_marked(f: Any) -> Any:
    """1.0 where `marked` was given a negative p, otherwise 0.0."""
    mark = (_bits(f) >> PLACE) & 1
    return mark.float() if isinstance(mark, Tensor) else cute.Float32(mark)
