"""Test-time training document by document: the queue of batches, the phases, the ranks.

`lora` adapts to each document alone. `phased` (PR 1855) also trains the shared weights, between phases, on documents
that are scored: those of the batches so far by ascending length, cut to the boundary, which leaves out the longest.
"""

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf import ranks
from pgolf.budget import Clock
from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.compiled import back_end, compiled
from pgolf.evaluate.config import EvaluateConfig, LoRAConfig
from pgolf.evaluate.documents import (
    Documents,
    Ints,
    boundaries,
    find_documents,
    plan_batches,
    plan_phases,
    share_out,
)
from pgolf.evaluate.journal import Journal
from pgolf.evaluate.lora_ttt import Steady, Text, lora_batch, passes
from pgolf.evaluate.precision import precise
from pgolf.evaluate.score import BOS, Scored, finite, on_device
from pgolf.evaluate.updates import Update
from pgolf.evaluate.weights import borrowed, frozen
from pgolf.model.gpt import GPT

if TYPE_CHECKING:
    from pgolf.evaluate.carry import Carry
    from pgolf.evaluate.neural_cache import States

Batch = Callable[[GPT, Text, Documents, Adapters, EvaluateConfig, Journal, Steady], None]
"""Scores a batch of documents and adapts to each."""


def document_ttt(
    model: GPT,
    tokens: NDArray[np.uint16],
    config: EvaluateConfig,
    report: Scored = lambda *done: None,
    forecast: bool = False,
) -> tuple[NDArray[np.float32], list[Update]]:
    """Loss of every target [n - 1], nats, of a stream [n], and what was learned when; the model is unchanged.

    `forecast`: reports say how many seconds are left also where `config` has no budget.
    Updates count targets in the order in which they were scored: see `pgolf.evaluate.journal`.
    """
    adapt, documents, clock = _way(config), find_documents(tokens, BOS), Clock()
    queue = plan_batches(documents.targets, config.lora.documents)
    limits = boundaries(config.phases.prefix_documents, config.phases.count) if config.ttt == "phased" else []
    ends = plan_phases([len(batch) for batch in queue], limits, config.phases.ranks)
    shares = _shares(queue, ends, documents, config)
    text, journal, pace = Text(*on_device(tokens, model.tok_emb.weight.device)), Journal(), Steady()
    if config.seconds or forecast:
        from pgolf.evaluate.pace import Pace

        work = sum(_cost(documents, queue[i], config) for share in shares for i in share)
        pace = Pace(config.seconds, work, config.seq_len // config.lora.chunk_tokens, lambda: clock.seconds("ttt"))
    done, mine = 0, sum(len(queue[i]) for share in shares for i in share)
    model.prepare(config.seq_len)
    parameters, backend = list(model.parameters()), back_end(config, model.tok_emb.weight.device)
    exact = contextlib.nullcontext() if config.ttt == "cached" else precise(model, config.seq_len)
    with clock.phase("ttt"), borrowed(parameters), exact:
        for phase, share in enumerate(shares):
            sets, carry = dict[int, Adapters](), _carry(config.lora)
            for index in share:
                batch = documents.take(queue[index])
                size = len(batch.start)
                if size not in sets:
                    sets[size] = Adapters(model, config.lora, size)
                sets[size].reset(index)
                if carry:
                    carry.begin(sets[size])
                alone = size == 1  # which torch.compile would make graphs of its own for
                states = _states(model, text, batch, config)
                with frozen(parameters), compiled(model, None if alone else backend):
                    heard = text._replace(write=states.write) if states else text
                    adapt(model, heard, batch, sets[size], config, journal, pace)
                if carry:
                    carry.end(sets[size])
                if states:
                    states.consult(text.tokens, text.losses, config.cache)
                places, done = batch.places(), done + size
                report(text.losses[torch.from_numpy(places)].cpu().numpy(), places, pace.remark, done, mine)
            parts, steps = ranks.collect(journal.part()), 0
            if phase < len(ends):
                from pgolf.evaluate.shared_ttt import learn_shared

                scored = np.concatenate(queue[: ends[phase]][::-1])[: limits[phase]]
                steps = learn_shared(model, tokens, documents.take(scored), config)
            journal.close(parts, steps)
    losses = ranks.merge_losses(text.losses[:-1])
    return finite(losses.cpu().numpy(), "lower `evaluate.lora.lr`"), journal.updates


def _way(config: EvaluateConfig) -> Batch:
    if config.ttt == "cached":
        from pgolf.evaluate.cached_ttt import cached_batch

        return cached_batch
    return lora_batch


def _states(model: GPT, text: Text, batch: Documents, config: EvaluateConfig) -> "States | None":
    if not config.cache.sharpness:
        return None
    from pgolf.evaluate.neural_cache import States

    return States(model, text.tokens, batch)


def _carry(settings: LoRAConfig) -> "Carry | None":
    if not settings.carry:
        return None
    from pgolf.evaluate.carry import Carry

    return Carry(settings.carry)


def _cost(documents: Documents, batch: Ints, config: EvaluateConfig) -> int:
    if config.ttt == "cached":
        from pgolf.evaluate.cached_ttt import cached_passes

        return cached_passes(int(documents.targets[batch].max()), config.lora)
    return passes(documents.targets[batch], config.lora.chunk_tokens, config.seq_len)


def _shares(
    queue: Sequence[Ints], ends: Sequence[int], documents: Documents, config: EvaluateConfig
) -> list[list[int]]:
    """Which batches of each phase this rank works on, in order."""
    shares = []
    for first, end in pairwise([0, *ends, len(queue)]):
        costs = [_cost(documents, batch, config) for batch in queue[first:end]]
        shares.append([first + index for index in share_out(costs, ranks.world())[ranks.rank()]])
    return shares
