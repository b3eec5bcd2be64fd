"""Several processes that evaluate together, through torch.distributed; without it there is one rank.

Ranks score different windows or documents and add up what they found; what learns on all ranks learns from the mean
of their gradients, so the weights stay equal.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def add(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def collect(value: T) -> list[T]:
    """The value of every rank, in order."""
    if world() == 1:
        return [value]
    values: list[T | None] = [None] * world()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def merge_losses(losses: Tensor) -> Tensor:
    """One tensor [n] of the losses that the ranks found, each at other places; NaN is a place without a loss."""
    if world() == 1:
        return losses
    found = add((~losses.isnan()).int())
    return add(losses.nan_to_num(nan=0.0)).where(found == 1, torch.nan)
