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
FRACTION, ONE = 23, 0x3F800000
"""Bits of a float32's fraction, and its 1."""


def maximum(a: Any, b: Any) -> Any:
    """max(a, b)."""
    return torch.maximum(a, b) if isinstance(a, Tensor) else cute.arch.fmax(a, b)


def clipped(x: Any, most: float) -> Any:
    """x, within -most and most, on its way to 8-bit floats whose largest number is `most`: a GPU's conversion clips."""
    return x.clamp(-most, most) if isinstance(x, Tensor) else x


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


def of_mark(f: Any, plain: Any, marked: Any) -> Any:
    """`plain` where the other function was given a p >= 0 with f, `marked` where p < 0; to 2^-16 of the larger."""
    if isinstance(f, Tensor):
        return torch.where((_bits(f) >> PLACE) & 1 == 1, marked, plain)
    # A bit of a number from 1 to 2 takes no conversion and no comparison: one instruction, and one that multiplies and
    # adds what is the same for all elements.
    number, steps = _number((_bits(f) & (1 << PLACE)) | ONE), 1 << (FRACTION - PLACE)
    slope = (marked - plain) * steps
    return number * slope + (plain - slope)
