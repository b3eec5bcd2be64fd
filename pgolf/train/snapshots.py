"""Means of snapshots: the averages of `pgolf.train.averaging` that do not look at every step.

    RunningMean   m_n = m_(n-1) + (x_n - m_(n-1)) / n           swa, tight_swa
    LastMean      mean of the last k snapshots, in a ring       lawa

`source` holds the tensors that a snapshot is taken of: the live weights, or for tight_swa those of an EMA.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.train.averaging import lerp_


class RunningMean:
    """Arithmetic mean of all snapshots so far."""

    def __init__(self, source: Sequence[Tensor], names: Sequence[str]) -> None:
        self.source, self.names = list(source), list(names)
        self.average = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in source]
        self.count = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def take(self) -> None:
        """Take in the source as it is now."""
        self.count += 1
        lerp_(self.average, self.source, 1 / int(self.count))

    def state(self) -> dict[str, Tensor]:
        """Everything to go on with, by name."""
        return {"count": self.count, **dict(zip(self.names, self.average, strict=True))}


class LastMean:
    """Arithmetic mean of the last `last` snapshots; holds them all."""

    def __init__(self, source: Sequence[Tensor], names: Sequence[str], last: int) -> None:
        self.source, self.names = list(source), list(names)
        self.ring = [[torch.zeros_like(tensor, dtype=torch.float32) for tensor in source] for _ in range(last)]
        self.count = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def take(self) -> None:
        """Take in the source as it is now, in the place of the oldest snapshot."""
        torch._foreach_copy_(self.ring[int(self.count) % len(self.ring)], self.source)
        self.count += 1

    @property
    def average(self) -> list[Tensor]:
        """The mean; needs one snapshot."""
        taken = self.ring[: int(self.count)]
        return [torch.stack(tensors).mean(0) for tensors in zip(*taken, strict=True)]

    def state(self) -> dict[str, Tensor]:
        """Everything to go on with, by place in the ring and name."""
        slots = {
            f"{place}.{name}": tensor
            for place, tensors in enumerate(self.ring)
            for name, tensor in zip(self.names, tensors, strict=True)
        }
        return {"count": self.count, **slots}
