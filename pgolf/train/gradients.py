"""From the losses of tokens to the gradient that the optimizers see.

Clipping: g <- g min(1, limit / |g|), |g| over all parameters. `global` clips the mean over micro-batches and ranks (PR
401, 1493). `local` clips the gradient of each rank before the mean (stacks with parameter banks, PR 549 to 1855); a
micro-batch is one rank's share, so each is clipped by itself, which on one GPU is what eight do. The norm of a part
exceeds that of the mean, so the same limit clips harder.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


def descend(weights: list[Tensor], directions: list[Tensor], rate: float | Tensor, decay: float = 0) -> None:
    """w <- w - rate (x + decay w), on CUDA in one pass over tensors of equal strides; a rate may lie on the device."""
    fused = weights[0].is_cuda  # torch 2.13's on a CPU leaves long bfloat16 tensors as they are
    sgd(
        weights, directions, [None] * len(weights), fused=fused, weight_decay=decay, momentum=0, lr=rate, dampening=0,  # type: ignore[arg-type]
        nesterov=False, maximize=False,
    )  # fmt: skip


def by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """In groups of one type: foreach functions launch a kernel for every tensor of a mixed list."""
    return [[each for each in tensors if each.dtype == dtype] for dtype in dict.fromkeys(t.dtype for t in tensors)]


@torch.no_grad()
def add(parameters: Sequence[nn.Parameter], sums: Sequence[Tensor | None], limit: Tensor | None = None) -> None:
    """Make the sums the gradients of parameters, after adding in place the gradients g that these have.

    sum <- sum + g min(1, limit / |g|)
    """
    totals, grads = [], []
    rate = torch.tensor(-1.0)
    for parameter, total in zip(parameters, sums, strict=True):
        grad, parameter.grad = parameter.grad, total
        if total is None and limit is None:
            parameter.grad = grad
        elif grad is not None:
            parameter.grad = torch.zeros_like(grad) if total is None else total
            grads.append(grad)
            totals.append(parameter.grad)
    if not grads:
        return
    if limit is not None:
        norms = [torch.stack(torch._foreach_norm(group)).float().norm() for group in by_type(grads)]
        norm = torch.stack(norms).norm()
        rate = -(limit / (norm + 1e-6)).clamp_max(1)
    descend(totals, grads, rate)
