"""From the losses of tokens to the gradient that the optimizers see.

Clipping: g <- g min(1, limit / |g|), |g| over all parameters. `global` clips the mean over micro-batches and ranks (PR
401, 1493). `local` clips the gradient of each rank before the mean (stacks with parameter banks, PR 549 to 1855); a
micro-batch is one rank's share, so each is clipped by itself, which on one GPU is what eight do. The norm of a part
exceeds that of the mean, so the same limit clips harder.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def selective_mean(losses: Tensor, fraction: float) -> Tensor:
    """Mean over the `fraction` of tokens with the largest loss, at least one: the others get no gradient.

    Selective language modelling after Rho-1, without its reference model (PR 2071's study: +.002 to +.155 BPB).
    """
    if fraction == 1:
        return losses.mean()
    kept = max(1, math.ceil(fraction * losses.numel()))
    return losses.flatten().topk(kept, sorted=False).values.mean()


class LocalClip:
    """Sums the clipped gradients of parts; `add` after every backward pass, `finish` after the last."""

    def __init__(self, parameters: Sequence[nn.Parameter], limit: float) -> None:
        """`limit` is that of one part, whose loss may be scaled already."""
        self.parameters, self.limit = parameters, limit
        self.sums: dict[nn.Parameter, Tensor] = {}

    def add(self) -> None:
        """Clip the gradient that has just been computed, put it by and clear it."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.limit)
        found = {parameter: parameter.grad for parameter in self.parameters if parameter.grad is not None}
        for dtype in {grad.dtype for grad in found.values()}:  # all of one type are added by one kernel
            again = [p for p, grad in found.items() if p in self.sums and grad.dtype == dtype]
            if again:
                torch._foreach_add_([self.sums[p] for p in again], [found[p] for p in again])
        self.sums = found | self.sums
        for parameter in found:
            parameter.grad = None

    def finish(self) -> None:
        """Give every parameter its sum."""
        for parameter, total in self.sums.items():
            parameter.grad = total
