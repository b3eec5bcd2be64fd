"""Symmetric grids with one float16 scale per row, and the clip that sets it (SDClip, PR 1394).

    s_i = float16(max(k std(W_i) / c, 1e-10)),  q = clamp(round(w / s), -c, c),  W^ = q s

std is unbiased and taken over the original row; q is computed with the rounded scale, so that nothing is lost on load.
"""

import math
from functools import cache

import torch
from torch import Tensor


def sdclip_scale(weight: Tensor, k_sigma: float, clip: int) -> Tensor:
    """Row scales [m], float16, of W [m, n]: k std(W_i) / c."""
    return positive_half(k_sigma * weight.float().std(dim=1) / clip)


def absmax_scale(weight: Tensor, clip: int) -> Tensor:
    """Row scales [m], float16, of W [m, n] with which no value is clipped: max|W_i| / c."""
    return positive_half(weight.float().abs().amax(dim=1) / clip)


def positive_half(scale: Tensor) -> Tensor:
    """The scale in float16, never 0: one too small for float16 becomes its smallest number."""
    return scale.clamp_min(1e-10).half().clamp_min(2.0**-24)


def geometric(scale: Tensor, steps: int) -> Tensor:
    """The float16 scales moved to the nearest number 2^(k / steps), in ratio; `steps` is a power of 2."""
    return _powers(steps).to(scale.device)[_places(scale, steps)]


def _places(scale: Tensor, steps: int) -> Tensor:
    return ((scale.double().log2() * steps).round().long() + 24 * steps).clamp(0, 39 * steps - 1)


@cache
def _powers(steps: int) -> Tensor:
    """2^(k / steps) for k from -24 steps to 15 steps - 1, float16, computed as the codec's grid is."""
    root = 2.0
    for _ in range(steps.bit_length() - 1):
        root = math.sqrt(root)
    octave = [1.0]
    for _ in range(steps - 1):
        octave.append(octave[-1] * root)
    return torch.tensor([math.ldexp(value, power) for power in range(-24, 15) for value in octave]).half()


def shortened(values: Tensor, bits: int) -> Tensor:
    """float16 values rounded to nearest, ties away from 0, so that the last 10 - `bits` bits of the mantissa are 0."""
    drop = 10 - bits
    if not drop:
        return values
    rounded = (values.view(torch.int16).int() + (1 << drop >> 1)) & -(1 << drop)
    return rounded.to(torch.int16).view(torch.float16)


def round_to_nearest(weight: Tensor, scale: Tensor, clip: int) -> Tensor:
    """Codes int8 of W [m, n] (or of columns [m]) without error feedback; ties go to even."""
    steps = weight / (scale.float()[:, None] if weight.ndim == 2 else scale.float())
    return steps.round().clamp(-clip, clip).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """W^ [m, n], float32, from codes [m, n] and scales [m]."""
    return codes.float() * scale.float()[:, None]
