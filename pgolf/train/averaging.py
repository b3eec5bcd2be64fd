"""Averages of the weights over a run; by default the first becomes the model at the end.

    ema        e <- beta e + (1 - beta) p after every step (PR 287), started at the initial weights, no bias correction
    swa        mean of snapshots of p in the low part of the warm-down
    tight_swa  mean of snapshots of e there (PR 401); with fewer than two, e itself
    lawa       mean of the last k snapshots of p (PR 549, off there)
    live       p itself

All in float32, kept on the device (a copy to the host per step cost PR 635 half its steps) and written back rounded to
each weight's type. The best decay follows the number of steps: .9965 for 5,000, .99 for 1,000. The snapshots stand
in `pgolf.train.snapshots`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EMA:
    """Exponential average of every parameter of a model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = [parameter.detach() for parameter in model.parameters()]
        self.average = [parameter.clone().float() for parameter in self.live]
        self.names = [name for name, _ in model.named_parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current weights."""
        lerp_(self.average, self.live, 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model."""
        torch._foreach_copy_(self.live, self.average)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(zip(self.names, self.average, strict=True))


def lerp_(average: list[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """average <- average + share (weights - average), in float32 whatever the weights' type."""
    torch._foreach_lerp_(average, [weight.float() for weight in weights], share)
