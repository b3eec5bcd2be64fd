"""Our own schedule: each token passes once, keys and values of the text before are remembered.

The published form reads up to 2,048 tokens again for every 48 that it scores, because every step changes the adapters
and with them all keys and values. Here those of earlier chunks stay as the adapters of their time made them, and no
gradient flows through them. A document of n targets then costs about n tokens instead of n^2 / 2 K.

    1. the model reads the tokens [p - R, p + K) with the remembered keys and values of those before, and scores the
       targets from p on;
    2. unless the document ends there, one step on the mean loss of all it has read, through the same graph.

With R = 0 each token passes once; otherwise the R tokens before are read again with the adapters of now, their keys and
values are replaced, and there is more to learn from. Their losses stay what they were.

When L tokens are remembered, the last L - S are read again with the adapters of now, and all others forgotten: the
contexts are those of sliding windows with stride S, and a long document costs L / S times its tokens.
"""

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import Documents, Ints
from pgolf.evaluate.journal import Journal
from pgolf.evaluate.lora_ttt import Chunk, Text, charge
from pgolf.evaluate.pace import Pace
from pgolf.model.gpt import GPT
from pgolf.model.visit import Visit

LEAD = 2
"""Tokens before a chunk that its embeddings look back at: smear one, trigrams two."""


def cached_passes(targets: Ints, chunk: int) -> int:
    """Passes of a batch through the model: small ones, which take about as long for few rows as for many."""
    return int(-(-targets.max() // chunk))


def cached_batch(
    model: GPT, text: Text, batch: Documents, adapters: Adapters, config: EvaluateConfig, journal: Journal, pace: Pace
) -> None:
    """Score the documents of a batch, by ascending length, and adapt to each."""
    length, stride, rows = config.seq_len, config.stride, len(batch.targets)
    start, targets = (torch.from_numpy(column).to(text.tokens.device) for column in batch)
    memory: list[Visit] = []
    number, position, before = 0, 0, journal.scored
    while position < batch.targets[-1]:
        low = int(np.searchsorted(batch.targets, position, "right"))
        low = min(low, max(rows - 2, 0))  # one row alone would be compiled by itself
        part, mine = slice(low, rows), batch.targets[low:]
        remembered = memory[0].tokens if memory else 0
        again = min(config.lora.reread, remembered)
        if remembered == length:
            remembered = length - stride
            memory, again = _read_again(model, text, start[part] + position, remembered, adapters, part), 0
        size = min(config.lora.chunk_tokens * pace.factor, length - remembered)
        chunk, number = Chunk(start[part], targets[part], position, size), number + 1
        journal.score(int((mine.clip(position, position + size) - position).sum()))
        goes_on = pace.learning and int(mine[-1]) > position + size
        with torch.set_grad_enabled(goes_on):
            leaves = adapters.leaves(part)
            visits = _remember(adapters.visit(leaves, remember=True), memory, len(mine), remembered - again)
            losses = _score(model, text, chunk, visits, again)
        if goes_on:
            unfinished = (chunk.targets > position + size).to(losses.dtype)
            adapters.step(part, torch.autograd.grad((losses.mean(1) * unfinished).sum(), leaves), number)
            journal.learn(journal.scored - before if again else int((mine > position + size).sum()) * size)
        memory, position = visits, position + size
        pace.did(size / config.lora.chunk_tokens, 1)


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


def _score(model: GPT, text: Text, chunk: Chunk, visits: list[Visit], again: int) -> Tensor:
    """The losses [rows, again + size] of a chunk and of the targets before it; those of the chunk are written down."""
    lead = min(LEAD, visits[0].tokens)
    end = chunk.targets.clamp(max=chunk.position + chunk.size)
    place = (chunk.start + chunk.position)[:, None] + torch.arange(-again - lead, chunk.size, device=end.device)
    ids = text.tokens[place.where(place < (chunk.start + end)[:, None], 0)]
    hidden = model.hidden(ids.long(), visits=visits[:-1], lead=lead)
    losses = charge(model, text, chunk, hidden[:, again:], visits[-1], end)
    if not again:
        return losses
    asked = (place[:, lead : lead + again] + 1).clamp(max=len(text.tokens) - 1)  # of documents that have ended
    known = model.surprise(hidden[:, :again], text.tokens[asked].long(), visits[-1])
    return torch.cat([known, losses], dim=1)
