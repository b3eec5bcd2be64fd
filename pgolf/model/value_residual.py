"""What the first layer gives to the values of the later ones (value residual, ResFormer).

    learned   v <- l_0 v_0 + l_1 v, l = [0.5, 0.5] learned per layer >= 1, v_0 the values of layer 0     PR 549, 635
    fixed     v <- (1 - a) v + a v_0, layers >= 1, a = value_residual_alpha                        PR 2071's study
    gated     v = W_v norm(sigmoid(l) x_in + (1 - sigmoid(l)) x_first) s, l = 0.5 learned per layer, x_first the
              output of layer 0, in layer 0 itself the embedding x0                        PR 401's author (VRL)

v_0 includes the value embedding and is not normed. Exclusive attention then reads the mixed v. Layer 0 has an l that
nothing reads, as published.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from pgolf.model.config import ModelConfig


class Mixed(Protocol):
    """What the forms below read of an attention module."""

    vr_lambda: Tensor
    vr_alpha: float


Form = Callable[[Mixed, Tensor, Tensor], Tensor]
"""(attention, v, v_0), both [B, T, Hkv, D], to the mixed values."""


def learned(attention: Mixed, v: Tensor, first: Tensor) -> Tensor:
    """Two learned scalars."""
    weights = attention.vr_lambda.to(v.dtype)
    return weights[0] * first + weights[1] * v


def fixed(attention: Mixed, v: Tensor, first: Tensor) -> Tensor:
    """One constant."""
    return torch.lerp(v, first, attention.vr_alpha)


def gated(x: Tensor, first: Tensor, weight: Tensor) -> Tensor:
    """x, first [B, T, d]; weight [1] is l."""
    return torch.lerp(first, x, torch.sigmoid(weight).to(x.dtype))


def install_mix(attention: nn.Module, config: ModelConfig) -> Form:
    """Give the attention module what `learned` or `fixed` reads; returns the form."""
    if config.value_residual == "learned":
        attention.vr_lambda = nn.Parameter(torch.full((2,), 0.5))
        return learned
    attention.vr_alpha = config.value_residual_alpha  # type: ignore[assignment]
    return fixed
