"""Norms of a step's gradients, which one process holds or several share, and clipping by their common norm:

g <- g min(1, limit / (|g| + 1e-6)), |g| over all parameters
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf import ranks
from pgolf.train.exchange import Exchange

if TYPE_CHECKING:
    from pgolf.train.trainer import Trainer


@torch.no_grad()
def gradient_norms(trainer: "Trainer") -> dict[nn.Parameter, Tensor]:
    """The norm of the gradient of every parameter that has one, the same to all processes."""
    if trainer.exchange is not None:
        return _shared_norms(trainer.exchange)
    return _norms(trainer.model.parameters())


@torch.no_grad()
def clip_globally(trainer: "Trainer", limit: float) -> None:
    """Clip the gradients of a step as the formula says."""
    if (exchange := trainer.exchange) is None:
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), limit)
        return
    norm = torch.stack(list(_shared_norms(exchange).values())).norm()
    factor = (limit / (norm + 1e-6)).clamp_max(1)
    others = [parameter.grad for parameter in exchange.others if parameter.grad is not None]
    for tensor in (*others, *map(exchange.muon.summed, exchange.muon.stacks)):
        tensor.mul_(factor)


def _shared_norms(exchange: Exchange) -> dict[nn.Parameter, Tensor]:
    """Every process knows the norms of its shares of Muon's stacks; one small all-reduce tells the others."""
    exchange.wait()
    muon = exchange.muon
    sums = {key: muon.summed(key) for key in muon.stacks}
    stacked = {key: own.new_zeros(ranks.world() * len(own), dtype=torch.float32) for key, own in sums.items()}
    for key, own in sums.items():
        stacked[key][muon.share(key)] = torch.linalg.vector_norm(own, dim=(1, 2), dtype=torch.float32)
    together = torch.split(ranks.add(torch.cat(list(stacked.values()))), [len(each) for each in stacked.values()])
    found: dict[nn.Parameter, Tensor] = {}
    for stack, norms in zip(muon.stacks.values(), together, strict=True):
        found |= dict(zip(stack, norms, strict=False))  # without the filling
    return found | _norms(exchange.others)


def _norms(parameters: Iterable[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    grads = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
    return dict(zip(grads, torch._foreach_norm(list(grads.values())), strict=True))
