"""Weights that an evaluation changes and gives back."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Their values now."""
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Set them to values."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@contextlib.contextmanager
def borrowed(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Afterwards they are as they were, and without gradients."""
    before = copies(parameters)
    try:
        yield
    finally:
        put(parameters, before)
        for parameter in parameters:
            parameter.grad = None


@contextlib.contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, no gradient is taken of them and nothing is kept for one."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, learns in zip(parameters, before, strict=True):
            parameter.requires_grad_(learns)
