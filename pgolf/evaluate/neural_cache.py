"""A cache of what followed similar states in the same document (Grave, Joulin, Usunier 2017): `evaluate.cache`.

With h_t the final state that predicts target t of a document, y_t that target, and i < t:

    w_i = exp(theta (cos(h_t, h_i) - 1)),    C = sum_i w_i
    q(v) = 1/C sum_{i: y_i = v} w_i
    p(v) <- (1 - g) p(v) + g q(v),           g = sigmoid(a log C + b)

Both p and q sum to 1 over the vocabulary, and q and g depend on scored targets alone, so p is a normalised function of
the text so far; nothing is trained. The gate g sees how close the closest states are: with a constant share the cache
wins a quarter as much. States are those of the pass in which their targets were scored.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from pgolf import ranks
from pgolf.evaluate.config import CacheConfig, EvaluateConfig
from pgolf.evaluate.documents import Documents, find_documents
from pgolf.evaluate.score import BOS, finite, on_device, score_windows, windows_for
from pgolf.evaluate.windows import Windows
from pgolf.model.gpt import GPT

QUERIES = 1024
"""Targets per product, which bounds memory at QUERIES x n numbers for a document of n targets."""


@torch.no_grad()
def look_up(states: Tensor, targets: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """log C [n] and log q(y_t) [n] for the states [n, d] and targets [n] of one document."""
    keys, found = normalize(states.float(), dim=-1), []
    for first in range(0, len(keys), QUERIES):
        end = min(first + QUERIES, len(keys))
        weights = keys[first:end] @ keys[:end].T
        weights = weights.sub_(1).mul_(sharpness).exp_().tril_(first - 1)
        total = weights.sum(1).clamp_min(torch.finfo(weights.dtype).tiny).log()
        same = targets[first:end, None] == targets[:end]
        found.append(torch.stack([total, (weights * same).sum(1).log() - total]))
    total, cached = torch.cat(found, dim=1)
    return total, cached


def mix(losses: Tensor, total: Tensor, cached: Tensor, gate: Tensor | float, bias: Tensor | float) -> Tensor:
    """The losses [n], nats, with the cache beside the model: log C and log q(y_t) [n] are those of `look_up`."""
    share = gate * total + bias
    return -torch.logaddexp(logsigmoid(-share) - losses, logsigmoid(share) + cached)


def room(model: GPT, stream: Tensor) -> Tensor:
    """A place for the final state [n, d] of every token of a stream [n]."""
    return torch.zeros(*stream.shape, model.config.dim, dtype=model.dtype, device=stream.device)


def consult(stream: Tensor, losses: Tensor, states: Tensor, documents: Documents, config: CacheConfig) -> None:
    """Mix the cache into the losses [n] of these documents, all of whose targets have their loss and state."""
    for start, targets in zip(*documents, strict=True):
        own = slice(int(start), int(start + targets))
        found = look_up(states[own], stream[own.start + 1 : own.stop + 1], config.sharpness)
        losses[own] = mix(losses[own], *found, config.gate, config.bias)


def window_losses(
    model: GPT,
    tokens: NDArray[np.uint16],
    config: EvaluateConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Loss of every target [n - 1], nats, of a stream [n] in windows, with the cache; nothing adapts."""
    stream, losses = on_device(tokens, model.tok_emb.weight.device)
    documents, states = find_documents(tokens, BOS), room(model, stream)
    mine = documents.take(np.arange(ranks.rank(), len(documents.start), ranks.world()))
    windows = windows_for(tokens, config, config.stride)
    owner = (np.searchsorted(documents.start, windows.first, "right") - 1) % ranks.world()
    windows = Windows(*(column[owner == ranks.rank()] for column in windows))
    score_windows(model, stream, windows, config.batch_tokens, losses, report, states)
    consult(stream, losses, states, mine, config.cache)
    return finite(ranks.merge_losses(losses[:-1]).cpu().numpy(), "train again with a lower rate")
