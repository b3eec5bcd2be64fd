"""The constants of `evaluate.cache` with the lowest loss on training text."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.evaluate.config import CacheConfig
from pgolf.evaluate.neural_cache import look_up, mix
from pgolf.lab.temperature import golden_section

SHARPEST, FLATTEST = 1000.0, 10.0


class Document(NamedTuple):
    """One document of n targets, scored without a cache."""

    losses: Tensor
    """Nats [n]."""
    states: Tensor
    """Final states [n, d]."""
    targets: Tensor
    """Tokens [n]."""


def fit_gate(losses: Tensor, total: Tensor, cached: Tensor) -> tuple[float, float, float]:
    """Gate, bias and mean loss of the best mixture, for losses, log C and log q [n] of `look_up` (L-BFGS)."""
    losses, total, cached = losses.double(), total.double(), cached.double()
    values = torch.tensor([0.5, -3.0], dtype=torch.float64, device=losses.device, requires_grad=True)
    search = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        found = mix(losses, total, cached, values[0], values[1]).mean()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    search.step(loss)  # type: ignore[no-untyped-call]
    return float(values[0].detach()), float(values[1].detach()), float(loss().detach())


def fit_cache(
    documents: Sequence[Document], report: Callable[[CacheConfig, float], None] = lambda found, loss: None
) -> tuple[CacheConfig, float]:
    """The constants of the lowest mean loss over the documents, and that loss; golden section over log theta."""
    losses = torch.cat([document.losses for document in documents])

    def at(log_sharpness: float) -> tuple[CacheConfig, float]:
        sharpness = math.exp(log_sharpness)
        pairs = [look_up(document.states, document.targets, sharpness) for document in documents]
        total, cached = (torch.cat(column) for column in zip(*pairs, strict=True))
        gate, bias, _ = fit_gate(losses, total, cached)
        found = CacheConfig(sharpness=round(sharpness, 1), gate=round(max(gate, 0.0), 3), bias=round(bias, 3))
        loss = float(mix(losses, total, cached, found.gate, found.bias).double().mean())
        report(found, loss)
        return found, loss

    return at(golden_section(lambda x: at(x)[1], math.log(FLATTEST), math.log(SHARPEST), 0.1))
