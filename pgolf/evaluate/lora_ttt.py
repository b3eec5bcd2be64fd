"""Score-first adaptation of low-rank adapters to each document by itself (PR 1530, 1855; first version 17 March).

A document of n targets is scored in chunks of K. For chunk c, with the targets [c K, e), e = min((c + 1) K, n):

    1. the model reads the document from max(0, e - L) to e and scores the chunk;
    2. unless it is the document's last, one AdamW step on the mean loss of the chunk, through the same graph.

Every row of a batch has adapters of its own, so documents do not know of each other; only A is carried from a row of
one batch to the next. That is why the same mathematics may be done with less work than published: rows whose documents
have ended are left out instead of padded (their A still decays), and the head reads only the chunk.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import Documents, Ints
from pgolf.evaluate.journal import Journal
from pgolf.model.gpt import GPT
from pgolf.model.visit import Visit


class Text(NamedTuple):
    """What is scored, on the device: the stream [n] and the losses of its targets, with one place of scratch."""

    tokens: Tensor
    losses: Tensor
    write: Callable[[Tensor, Tensor], None] | None = None
    """Where a cache is used: gets places and the final states that predict the targets there."""


class Steady:
    """A pace without a budget: the plan as it is. `pgolf.evaluate.pace` has one that keeps to seconds."""

    factor, learning, remark = 1, True, ""
    """How many times as long chunks are, whether steps are taken, what there is to say."""

    def did(self, planned: float, actual: float) -> None:
        """A pass of `actual` tokens did what was planned to take `planned`."""


class Chunk(NamedTuple):
    """The targets [position, position + size) of some rows, counted in each document."""

    start: Tensor
    """First token of each document [rows]."""
    targets: Tensor
    """Targets of each document [rows]; those of at most `position` have ended, and nothing more is scored of them."""
    position: int
    size: int


def passes(targets: Ints, chunk: int, length: int) -> int:
    """Tokens that pass through the model for documents of these lengths: chunk c reads min((c + 1) K, L)."""
    whole, short = targets // chunk, targets % chunk
    rising = np.minimum(whole, length // chunk)
    tokens = chunk * rising * (rising + 1) // 2 + (whole - rising) * length + (short > 0) * np.minimum(targets, length)
    return int(tokens.sum())


def lora_batch(
    model: GPT, text: Text, batch: Documents, adapters: Adapters, config: EvaluateConfig, journal: Journal, pace: Steady
) -> None:
    """Score the documents of a batch, by ascending length, and adapt to each."""
    length, rows = config.seq_len, len(batch.targets)
    start, targets = (torch.from_numpy(column).to(text.tokens.device) for column in batch)
    steps, number, position = np.zeros(rows, dtype=np.int64), 0, 0
    while position < batch.targets[-1]:
        size, learning, number = min(config.lora.chunk_tokens * pace.factor, length), pace.learning, number + 1
        low, width = int(np.searchsorted(batch.targets, position, "right")), min(position + size, length)
        low = min(low, max(rows - 2, 0))  # one row alone would be compiled by itself
        for part in even_parts(low, rows, max(config.batch_tokens // width, 1)):
            chunk, mine = Chunk(start[part], targets[part], position, size), batch.targets[part]
            goes_on = learning and int(mine[-1]) > position + size
            journal.score(int((mine.clip(position, position + size) - position).sum()))
            score_and_learn(model, text, chunk, adapters, part, length, int(mine[-1]), number if goes_on else None)
            if goes_on:
                steps[part] += 1
                journal.learn(int((mine > position + size).sum()) * size)
            done = len(mine) * width
            pace.did(done * size / config.lora.chunk_tokens, done)
        position += size
    for row, missing in enumerate(steps.max() - steps):
        adapters.decay(row, int(missing))


def score_and_learn(
    model: GPT, text: Text, chunk: Chunk, adapters: Adapters, rows: slice, length: int, longest: int, step: int | None
) -> None:
    """Score a chunk of these rows, then take the step of this number, if one is given, through the same graph.

    Gradients are prepared in any case: to compile the model once more without them takes longer than they do.
    """
    leaves = adapters.leaves(rows)
    losses = score_chunk(model, text, chunk, adapters.visit(leaves), length, longest)
    if step is not None:
        unfinished = (chunk.targets > chunk.position + chunk.size).to(losses.dtype)
        adapters.step(rows, torch.autograd.grad((losses.mean(1) * unfinished).sum(), leaves), step)


def even_parts(first: int, end: int, most: int) -> list[slice]:
    """The rows from first to end in as few parts as hold at most so many, of about equal size."""
    parts = -(-(end - first) // most)
    edges = np.linspace(first, end, parts + 1).round().astype(int).tolist()
    return [slice(a, b) for a, b in pairwise(edges)]


def score_chunk(model: GPT, text: Text, chunk: Chunk, visits: list[Visit], length: int, longest: int) -> Tensor:
    """Write the losses of a chunk into their places and return them [rows, size], zero behind the documents' ends.

    `longest`: most targets of a document here.
    """
    end = chunk.targets.clamp(max=chunk.position + chunk.size)
    begin = (end - length).clamp(min=0)
    width = min(chunk.position + chunk.size, longest, length)
    steps = torch.arange(max(width, chunk.size), device=end.device)
    place = (chunk.start + begin)[:, None] + steps[:width]
    ids = text.tokens[place.where(place < (chunk.start + end)[:, None], 0)]
    hidden = model.hidden(ids.long(), visits=visits[:-1])
    offset = (chunk.position - begin)[:, None] + steps[: chunk.size]
    hidden = torch.take_along_dim(hidden, offset.clamp(max=width - 1)[..., None], dim=1)
    return charge(model, text, chunk, hidden, visits[-1], end)


def charge(model: GPT, text: Text, chunk: Chunk, hidden: Tensor, head: Visit, end: Tensor) -> Tensor:
    """The losses [rows, size] of the final states [rows, size, d] at a chunk's places, which are written down too."""
    place = (chunk.start + chunk.position)[:, None] + torch.arange(chunk.size, device=end.device)
    counts = place < (chunk.start + end)[:, None]
    scratch = len(text.losses) - 1
    losses = model.surprise(hidden, text.tokens[(place + 1).where(counts, 0)].long(), head)
    text.losses[place.where(counts, scratch)] = losses.detach()
    if text.write:
        text.write(place.where(counts, scratch), hidden)
    return losses.where(counts, 0)
