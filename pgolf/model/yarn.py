"""YaRN (Peng et al. 2023): slow frequencies are interpolated, fast ones kept, logits sharpened.

    rotations_k = N w_k / (2 pi)                       of frequency w_k over the original context of N tokens
    keep_k      = clamp((rotations_k - 1) / (32 - 1), 0, 1)
    w_k        <- keep_k w_k + (1 - keep_k) w_k / f
    logits     <- logits (0.1 ln f + 1)^2              on the whole head, also on dimensions that do not rotate

A record of 24 March (ternary weights) used it with base 5000 and 2048 tokens.
"""

import math

import torch
from torch import Tensor

SLOW, FAST = 1.0, 32.0
"""Rotations below which a frequency is interpolated, and above which it is kept."""


def interpolate(frequencies: Tensor, factor: float, length: int) -> Tensor:
    """The frequencies [r / 2] for `factor` times the original context of `length` tokens."""
    rotations = length * frequencies / (2 * math.pi)
    keep = ((rotations - SLOW) / (FAST - SLOW)).clamp(0, 1)
    return torch.lerp(frequencies / factor, frequencies, keep)


def sharpness(factor: float) -> float:
    """Factor on the attention logits."""
    return (0.1 * math.log(factor) + 1) ** 2
