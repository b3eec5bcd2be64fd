"""Decay that pulls outliers less than the proportional one does (PR 1807, after AdamHD): `train.muon.huber`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def decay_(weights: Sequence[Tensor], amount: float, delta: float) -> None:
    """p <- p - amount clip(p, -delta, delta) in place: the gradient of Huber's function."""
    clipped = torch._foreach_clamp_max(torch._foreach_clamp_min(list(weights), -delta), delta)
    torch._foreach_add_(list(weights), clipped, alpha=-amount)
