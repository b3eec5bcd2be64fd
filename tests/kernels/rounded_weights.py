"""Weights in float8 by plain torch: the twin of `pgolf.kernels.folding.fold_and_round`."""

import math

import torch
from torch import Tensor

from pgolf.kernels import float8


def round_weight(w: Tensor) -> float8.Eighth:
    """w [rows, inner] with its largest entry at the top of the range."""
    scale = torch.linalg.vector_norm(w, math.inf, dtype=torch.float32).clamp_min_(float8.LEAST).div_(float8.LARGEST)
    return float8.Eighth((w.float() / scale).to(float8.KIND).contiguous(), scale)


def turned(w: float8.Eighth) -> float8.Eighth:
    """[inner, rows]: products in float8 read both operands along what they sum over."""
    return float8.Eighth(w.values.T.contiguous(), w.scale)
