"""A cache of what followed similar states in the same document (Grave, Joulin, Usunier 2017): `evaluate.cache`.

With h_t the final state that predicts target t of a document, y_t that target, and i < t:

    w_i = exp(theta (cos(h_t, h_i) - 1)),    C = sum_i w_i
    q(v) = 1/C sum_{i: y_i = v} w_i
    p(v) <- (1 - g) p(v) + g q(v),           g = sigmoid(a log C + b)

Both p and q sum to 1 over the vocabulary, and q and g depend on scored targets alone, so p is a normalised function of
the text so far; nothing is trained. Where C is below the smallest number, as at the first target, p stays as it is. The
gate g sees how close the closest states are: with a constant share the cache wins a quarter as much. States are those
of the pass in which their targets were scored.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from pgolf import ranks
from pgolf.evaluate.config import CacheConfig, EvaluateConfig
from pgolf.evaluate.documents import Documents, find_documents
from pgolf.evaluate.score import BOS, finite, on_device, score_windows, windows_for
from pgolf.model.gpt import GPT

QUERIES = 1024
"""Targets per product, which bounds memory at QUERIES x n numbers for a document of n targets."""
PART = 1 << 20
"""Targets whose states are held together, in whole documents."""
NOTHING = -87.0
"""log C below which weights are too small for float32: nothing was found, and the model stands alone."""


@torch.no_grad()
def look_up(states: Tensor, targets: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """log C [..., n] and log q(y_t) [..., n] for the states [..., n, d] and targets [..., n] of one document."""
    keys, found = normalize(states.float(), dim=-1), []
    for first in range(0, keys.size(-2), QUERIES):
        end = min(first + QUERIES, keys.size(-2))
        weights = keys[..., first:end, :] @ keys[..., :end, :].mT
        weights = weights.sub_(1).mul_(sharpness).exp_().tril_(first - 1)
        total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny).log()
        same = targets[..., first:end, None] == targets[..., None, :end]
        found.append(torch.stack([total, (weights * same).sum(-1).log() - total]))
    total, cached = torch.cat(found, dim=-1)
    return total, cached


def mix(losses: Tensor, total: Tensor, cached: Tensor, gate: Tensor | float, bias: Tensor | float) -> Tensor:
    """The losses [n], nats, with the cache beside the model: log C and log q(y_t) [n] are those of `look_up`."""
    share = gate * total + bias
    mixed = -torch.logaddexp(logsigmoid(-share) - losses, logsigmoid(share) + cached)
    return mixed.where(total > NOTHING, losses)


class States:
    """The final states of some documents of a stream [n]: those of a whole validation set would not fit on a GPU."""

    def __init__(self, model: GPT, stream: Tensor, documents: Documents) -> None:
        places = torch.from_numpy(documents.places()).to(stream.device)
        self.documents = documents
        self.rows = torch.full_like(stream, len(places))  # whatever else is written shares the last row
        self.rows[places] = torch.arange(len(places), dtype=stream.dtype, device=stream.device)
        self.kept = torch.zeros(len(places) + 1, model.config.dim, dtype=model.dtype, device=stream.device)

    def write(self, place: Tensor, hidden: Tensor) -> None:
        """Keep the states [..., d] that predict the targets at these places [...] of the stream."""
        self.kept[self.rows[place]] = hidden.detach()

    def of_documents(self) -> Sequence[Tensor]:
        """The states [targets, d] of each document."""
        return torch.split(self.kept[:-1], self.documents.targets.tolist())

    def consult(self, stream: Tensor, losses: Tensor, config: CacheConfig) -> None:
        """Mix the cache into the losses [n] of the documents, all of whose targets have their loss and state."""
        for start, kept in zip(self.documents.start.tolist(), self.of_documents(), strict=True):
            own = slice(start, start + len(kept))
            found = look_up(kept, stream[own.start + 1 : own.stop + 1], config.sharpness)
            losses[own] = mix(losses[own], *found, config.gate, config.bias)


def window_losses(
    model: GPT,
    tokens: NDArray[np.uint16],
    config: EvaluateConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """Loss of every target [n - 1], nats, of a stream [n] in windows, with the cache; nothing adapts.

    Part by part, because the states of a whole validation set would not fit on a GPU.
    """
    _, losses = on_device(tokens, model.tok_emb.weight.device)
    documents = find_documents(tokens, BOS)
    mine = documents.take(np.arange(ranks.rank(), len(documents.start), ranks.world()))
    part_of, done, total = (mine.targets.cumsum() - 1) // PART, 0, int(mine.targets.sum())

    def show(scored: int, targets: int) -> None:
        report(done + scored, total)

    for part in np.unique(part_of):
        places = mine.take(np.flatnonzero(part_of == part)).places()
        text = tokens[np.append(places, places[-1] + 1)]  # the last target of each document is a BOS, as in the stream
        stream, found = on_device(text, losses.device)
        states, windows = States(model, stream, find_documents(text, BOS)), windows_for(text, config, config.stride)
        score_windows(model, stream, windows, config.batch_tokens, found, show, states.write)
        states.consult(stream, found, config.cache)
        losses[torch.from_numpy(places).to(losses.device)], done = found[:-1], done + len(places)
    return finite(ranks.merge_losses(losses[:-1]).cpu().numpy(), "train again with a lower rate")
