"""Several processes that work together, through torch.distributed; without it there is one rank.

torchrun and `pgolf.launch` start one process per GPU and say in the environment which it is. Tensors on GPUs travel by
NCCL, those on the host by gloo.

In evaluation, ranks score different windows or documents and add up what they found; what learns on all ranks learns
from the mean of their gradients, so the weights stay equal. In training see `pgolf.train.exchange`.
"""

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf.errors import InputError

T = TypeVar("T")


def start() -> None:
    """Meet the other processes, each with a GPU of its own; call it before the device is picked.

    InputError where a node has more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            local, present = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
            if local >= present:
                raise InputError(
                    f"more processes than the {present} GPUs here: set --nproc-per-node to {present} or less"
                )
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


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


def equal_(tensors: Iterable[Tensor]) -> None:
    """Give all ranks those of rank 0, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def decide(value: float) -> float:
    """The value of rank 0, for all: by the host, so that no GPU waits."""
    if world() > 1:
        held = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(held, 0)
        return held.item()
    return value


def merge_losses(losses: Tensor) -> Tensor:
    """One tensor [n] of the losses that the ranks found, each at other places; NaN is a place without a loss."""
    if world() == 1:
        return losses
    found = add((~losses.isnan()).int())
    return add(losses.nan_to_num(nan=0.0)).where(found == 1, torch.nan)
