"""Our own schedule: each token passes once, keys and values of the text before are remembered.

The published form reads up to 2,048 tokens again for every 48 that it scores, because every step changes the adapters
and with them all keys and values. Here those of earlier chunks stay as the adapters of their time made them, and no
gradient flows through them. A document of n targets then costs n tokens instead of n^2 / 2 K, so the context may be the
whole document. The chunk at p has

    K(p) = max(K, p / G)

targets, G being `growth`: short ones where a document begins, longer ones where much of it is known, so that a
document takes about G (1 + log(n / K G)) steps instead of n / K. For each chunk

    1. the model reads the tokens [p, p + K(p)) with what it remembers of those before, and scores their targets;
    2. unless the document ends there, one step on the mean loss of the chunk, through the same graph.

When L tokens are remembered, the last L - S are read again with the adapters of now, and all others forgotten: the
contexts are those of sliding windows with stride S, and a longer document costs up to L / S times its tokens.
"""

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.config import EvaluateConfig, LoRAConfig
from pgolf.evaluate.documents import Documents
from pgolf.evaluate.journal import Journal
from pgolf.evaluate.lora_ttt import Chunk, Steady, Text, charge
from pgolf.model.gpt import GPT
from pgolf.model.visit import Visit

LEAD = 2
"""Tokens before a chunk that its embeddings look back at: smear one, trigrams two."""


def chunk_size(position: int, settings: LoRAConfig, factor: int = 1) -> int:
    """Targets of the chunk at this place of a document, K(p), `factor` times as many to keep a budget."""
    grown = position // settings.growth if settings.growth else 0
    return max(settings.chunk_tokens, grown) * factor


def cached_passes(longest: int, settings: LoRAConfig) -> int:
    """Passes of a batch through the model: small ones, which take about as long for few rows as for many."""
    position = number = 0
    while position < longest:
        position, number = position + chunk_size(position, settings), number + 1
    return number


def cached_batch(
    model: GPT, text: Text, batch: Documents, adapters: Adapters, config: EvaluateConfig, journal: Journal, pace: Steady
) -> None:
    """Score the documents of a batch, by ascending length, and adapt to each."""
    length, stride, rows = config.seq_len, config.stride, len(batch.targets)
    start, targets = (torch.from_numpy(column).to(text.tokens.device) for column in batch)
    memory: list[Visit] = []
    number = position = 0
    while position < batch.targets[-1]:
        low = int(np.searchsorted(batch.targets, position, "right"))
        low = min(low, max(rows - 2, 0))  # one row alone would be compiled by itself
        part, mine = slice(low, rows), batch.targets[low:]
        remembered = memory[0].tokens if memory else 0
        if remembered == length:
            remembered = length - stride
            memory = _read_again(model, text, start[part] + position, remembered, adapters, part)
        wanted = chunk_size(position, config.lora, pace.factor)
        size = min(wanted, length - remembered)
        chunk, number = Chunk(start[part], targets[part], position, size), number + 1
        journal.score(int((mine.clip(position, position + size) - position).sum()))
        goes_on = pace.learning and int(mine[-1]) > position + size
        with torch.set_grad_enabled(goes_on):
            leaves = adapters.leaves(part)
            visits = _remember(adapters.visit(leaves, remember=True), memory, len(mine), remembered)
            losses = _score(model, text, chunk, visits)
        if goes_on:
            unfinished = (chunk.targets > position + size).to(losses.dtype)
            adapters.step(part, torch.autograd.grad((losses.mean(1) * unfinished).sum(), leaves), number)
            journal.learn(int((mine > position + size).sum()) * size)
        memory, position = visits, position + size
        pace.did(size * pace.factor / wanted, 1)


def _remember(visits: list[Visit], before: list[Visit], rows: int, tokens: int) -> list[Visit]:
    """The new adapters with the memory of the old ones, for the last rows and the first tokens."""
    for visit, old in zip(visits, before, strict=bool(before)):
        old.keep(rows, tokens)
        visit.past = old.past
    return visits


def _read_again(model: GPT, text: Text, end: Tensor, tokens: int, adapters: Adapters, part: slice) -> list[Visit]:
    """A memory of the last tokens before `end` [rows], with the adapters of now."""
    visits = adapters.visit([weight[part] for weight in adapters.weights], remember=True)
    place = end[:, None] + torch.arange(-tokens, 0, device=end.device)
    ids = text.tokens[place.clamp(min=0, max=len(text.tokens) - 1)].long()
    with torch.no_grad():
        model.hidden(ids, visits=visits[:-1])
    return visits


def _score(model: GPT, text: Text, chunk: Chunk, visits: list[Visit]) -> Tensor:
    """The losses [rows, size] of a chunk, which are written down."""
    lead = min(LEAD, visits[0].tokens)
    end = chunk.targets.clamp(max=chunk.position + chunk.size)
    place = (chunk.start + chunk.position)[:, None] + torch.arange(-lead, chunk.size, device=end.device)
    ids = text.tokens[place.where(place < (chunk.start + end)[:, None], 0)]
    hidden = model.hidden(ids.long(), visits=visits[:-1], lead=lead)
    return charge(model, text, chunk, hidden, visits[-1], end)
