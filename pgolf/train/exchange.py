"""The gradients of several processes, added up, while the optimizers are already at work.

After its backward passes every process starts, in this order and without waiting:

    reduce-scatter  Muon's stacks, largest first: each process gets the sum of its share of the matrices
    all-reduce      large tensors of AdamW, the embedding above all
    all-reduce      everything small, in one buffer, with the loss (PR 1530)

Muon then orthogonalises its share of one stack while the next is under way, and all-gathers the directions while it
goes on (`pgolf.train.muon`); AdamW comes last. Gradients travel in the type in which one process would add them up,
directions in that of the iteration, so the number of processes changes only the order of sums. PR 399 to 1855 send
both in bfloat16 and wait for each all-gather before the next stack.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pgolf.train.muon import Muon

SMALL = 32_768
"""Most elements of a tensor that travels in the common buffer (PR 1530)."""


class Exchange:
    """One process's side of it; `launch` after every step's last backward pass."""

    def __init__(self, muon: Muon, others: Sequence[nn.Parameter]) -> None:
        """`others`: the parameters of AdamW."""
        self.muon, self.others = muon, others
        self.works: list[dist.Work] = []

    @torch.no_grad()
    def launch(self, loss: Tensor) -> None:
        """Start to add up the gradients, and `loss`, which has its sum after `wait`."""
        self.muon.launch()  # first: one collective runs after the other, and Newton-Schulz waits for these
        grads = [parameter.grad for parameter in self.others if parameter.grad is not None]
        self.small = [loss, *(grad for grad in grads if grad.numel() <= SMALL)]
        self.works = [dist.all_reduce(grad, async_op=True) for grad in grads if grad.numel() > SMALL]
        self.packed = torch.cat([tensor.flatten() for tensor in self.small])  # in the widest of their types
        self.works.append(dist.all_reduce(self.packed, async_op=True))

    def wait(self) -> None:
        """Have AdamW's sums in `grad`, and Muon's of this process's shares."""
        for key in self.muon.stacks:
            self.muon.summed(key)
        for work in self.works:
            work.wait()
        if self.works:
            parts = torch.split(self.packed, [tensor.numel() for tensor in self.small])
            torch._foreach_copy_(self.small, [a.view_as(b) for a, b in zip(parts, self.small, strict=True)])
        self.works = []
