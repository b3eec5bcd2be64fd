"""Exponential moving average of the weights: e <- beta e + (1 - beta) p after every step (PR 287).

Float32, started at the initial weights, no bias correction; the average replaces the weights at the end.
"""

import torch
from torch import Tensor, nn


class EMA:
    """Average of every parameter of a model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [parameter.detach() for parameter in model.parameters()]
        self.average = [parameter.clone().float() for parameter in self.live]
        self.names = [name for name, _ in model.named_parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights."""
        torch._foreach_lerp_(self.average, self.live, 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model."""
        torch._foreach_copy_(self.live, self.average)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self.names, self.average, strict=True))
