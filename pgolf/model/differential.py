"""Differential attention, as in PR 2071's study (after Ye et al. 2024): the difference of two softmax maps.

    y = Attn(q1, k1, v) - sigmoid(l_h) Attn(q2, k2, v)

(q1, q2) and (k1, k2) are the halves of each head after RoPE, so only the first half rotates; scale 1 / sqrt(D / 2).
l starts at 0.8 - 0.6 exp(-0.3 max(i - 1, 0)), i the physical layer. No norm on y.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.attention import Segments, attend


def initial_lambda(index: int) -> float:
    """Start value of l in layer `index`, counted from 0."""
    return 0.8 - 0.6 * math.exp(-0.3 * max(index - 1, 0))


def differential(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, segments: Segments | None) -> Tensor:
    """q [B, T, H, D]; k, v [B, T, Hkv, D]; weight [H] is l; [B, T, H, D].

    Halves are padded with zeros to D, which kernels want, and the scale is put right in q.
    """
    half = q.size(-1) // 2
    q = q * math.sqrt(2)
    pairs = [(F.pad(q[..., part], (0, half)), F.pad(k[..., part], (0, half))) for part in _halves(half)]
    first, second = (attend(a, b, v, segments) for a, b in pairs)
    return torch.addcmul(first, torch.sigmoid(weight).to(q.dtype)[:, None], second, value=-1)


def _halves(half: int) -> tuple[slice, slice]:
    return slice(0, half), slice(half, 2 * half)
