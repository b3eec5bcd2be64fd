"""The probes on a run of ours: its shipped artifact, its evaluation settings, the beginning of its validation set.

Everything runs in float32 on the CPU, through the same code, with windows, chunks and documents scaled down to tens of
tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.audit import probes
from pgolf.audit.probes import Losses, Report, Tokens
from pgolf.audit.verdict import Finding, judge
from pgolf.data.shards import BOS
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import Documents, find_documents, plan_batches
from pgolf.evaluate.neural_cache import States, look_up, mix
from pgolf.evaluate.run import at_temperature, evaluate
from pgolf.evaluate.score import on_device, score_windows, windows_for
from pgolf.evaluate.windows import Windows
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT

LENGTH, CONTEXT, DOCUMENTS = 64, 7, 8
"""Tokens of a scaled window, of the context whose distributions are summed up, and documents of a scaled stream."""
PLAIN = EvaluateConfig()
BY_DOCUMENT = ("lora", "phased", "cached")
"""Forms of test-time training that score document by document, the longest first."""


def scaled(config: EvaluateConfig, length: int = LENGTH) -> EvaluateConfig:
    """The same evaluation with windows of `length` tokens, chunks of two windows and batches of two documents."""
    length = min(length, config.seq_len)
    stride = max(1, round(config.stride * length / config.seq_len))
    tokens = length if config.ttt == "phased" else 2 * length
    chunk = dataclasses.replace(config.chunk, chunk_tokens=tokens, rows_per_step=1, warmup_chunks=0)
    lora = dataclasses.replace(config.lora, chunk_tokens=max(1, length // 4), documents=2)
    phases = dataclasses.replace(config.phases, prefix_documents=DOCUMENTS // 2, count=2, ranks=1)
    return dataclasses.replace(
        config, seq_len=length, stride=stride, batch_tokens=4 * length, chunk=chunk, lora=lora, phases=phases,
        seconds=None, subset_targets=None,
    )  # fmt: skip


def charge(model: GPT, rows: Tokens, config: EvaluateConfig = PLAIN) -> Losses:
    """Rows [r, n], each of one document, to losses [r, n - 1] by one forward pass."""
    return answer(model, rows[:, :-1], rows[:, 1:], config)


def answer(model: GPT, inputs: Tokens, targets: Tokens, config: EvaluateConfig = PLAIN) -> Losses:
    """Inputs [r, n] and any targets [r, n] to losses [r, n], at the temperature and with the cache of `config`.

    Each target stands for itself: the cache knows the inputs behind it, not the other targets.
    """
    ids, asked = (torch.from_numpy(array.astype(np.int64)) for array in (inputs, targets))
    model.prepare(ids.size(1))
    with torch.no_grad(), at_temperature(model, config):
        hidden = model.hidden(ids)
        losses = model.surprise(hidden, asked)
    if config.cache.sharpness:
        known = ids[:, 1:]
        for t in range(ids.size(1)):
            pairs = look_up(hidden[:, : t + 1], torch.cat([known[:, :t], asked[:, t, None]], 1), config.cache.sharpness)
            total, cached = (pair[:, t] for pair in pairs)
            losses[:, t] = mix(losses[:, t], total, cached, config.cache.gate, config.cache.bias)
    found: Losses = losses.numpy()
    return found


def packed(model: GPT, documents: Sequence[Tokens]) -> Losses:
    """Losses within documents that share one row, cut by segments."""
    ids = torch.from_numpy(np.concatenate([d[:-1] for d in documents]).astype(np.int64))[None]
    targets = torch.from_numpy(np.concatenate([d[1:] for d in documents]).astype(np.int64))[None]
    lengths = [len(document) - 1 for document in documents]
    edges = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    model.prepare(ids.size(1))
    with torch.no_grad():
        losses: Losses = model.losses(ids, targets, Segments(edges, max(lengths)))[0].numpy()
    return losses


def first_documents(tokens: Tokens, count: int, longest: int) -> list[Tokens]:
    """The first documents of four tokens or more, cut."""
    starts = np.flatnonzero(tokens[: 1 << 20] == BOS)
    documents = [tokens[a:b][:longest] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    return [document for document in documents if len(document) >= 4][:count]


def scoring_order(tokens: Tokens, config: EvaluateConfig) -> NDArray[np.int64] | None:
    """For each target [n - 1] when it gets its loss; None: in stream order.

    By documents: batch by batch; within a batch documents do not know of each other, so by the place in the document.
    """
    if config.ttt not in BY_DOCUMENT:
        return None
    order = np.empty(len(tokens) - 1, dtype=np.int64)
    documents, before = find_documents(tokens, BOS), 0
    for batch in plan_batches(documents.targets, config.lora.documents):
        start, targets = documents.take(batch)
        places = Documents(start, targets).places()
        depth = np.concatenate([np.arange(count) for count in targets.tolist()])
        order[places] = before + np.argsort(np.argsort(depth, kind="stable"), kind="stable")
        before += len(places)
    return order


def scored_first(tokens: Tokens, config: EvaluateConfig) -> slice:
    """Some targets of one document that got their losses before anything was learned."""
    documents = find_documents(tokens, BOS)
    if config.ttt not in BY_DOCUMENT:
        row = int(documents.targets[0]) if config.isolate_documents else len(tokens) - 1
        return slice(0, min(config.seq_len, row, LENGTH))
    start, targets = documents.take(plan_batches(documents.targets, config.lora.documents)[0][:1])
    return slice(int(start[0]), int(start[0]) + min(int(targets[0]), config.lora.chunk_tokens, LENGTH))


def probe_model(
    model: GPT, tokens: Tokens, config: EvaluateConfig, vocab: int, report: Report = lambda text: None
) -> list[Finding]:
    """C1, C2, C3 at a rate of zero, and the boundaries of documents, of a model and the way it is evaluated."""
    small = scaled(config)
    length = small.seq_len
    stream = tokens[: 5 * length + 3]
    if config.ttt in BY_DOCUMENT and (documents := first_documents(tokens, DOCUMENTS, length + 9)):
        stream = np.concatenate(documents)
    ones = np.ones(len(stream), dtype=np.int64)

    def score(text: Tokens, settings: EvaluateConfig = small) -> Losses:
        return evaluate(model, text, ones[: len(text)], settings).losses

    targets = len(stream) - 1
    inside = sorted({length // 2 - 1, length, 2 * length, 3 * length + 5, targets - 1})
    inside = [cut for cut in inside if 0 < cut < targets]
    found = [
        probes.future_tokens(score, stream, vocab, inside, scoring_order(stream, small), report),
        probes.gradients(model, stream[: length + 1], [0, length // 2, min(length, targets) - 2]),
        probes.distribution(
            lambda i, t: answer(model, i, t, small), [stream[: min(CONTEXT, targets)]], vocab, report=report
        ),
    ]
    if config.ttt != "none":
        report("adaptation at a rate of 0")
        found.append(probes.zero_rate(score(stream, still(small)), unadapted(model, stream, small)))
    report("one document replaced before another")
    return [*found, _boundary(model, tokens, vocab)]


def still(config: EvaluateConfig) -> EvaluateConfig:
    """The same adaptation with every rate at zero."""
    chunk, lora = dataclasses.replace(config.chunk, lr=0.0), dataclasses.replace(config.lora, lr=0.0)
    return dataclasses.replace(config, chunk=chunk, lora=lora)


def unadapted(model: GPT, tokens: Tokens, config: EvaluateConfig) -> Losses:
    """The losses of the same contexts without adaptation, at the same temperature and with the same cache."""
    if config.ttt in ("lora", "phased"):  # `cached` reads the sliding windows of its stride
        stream, losses = on_device(tokens, model.tok_emb.weight.device)
        states = States(model, stream, find_documents(tokens, BOS))
        with at_temperature(model, config):
            score_windows(model, stream, _chunks(tokens, config), config.batch_tokens, losses, write=states.write)
        if config.cache.sharpness:
            states.consult(stream, losses, config.cache)
        found: Losses = losses[:-1].numpy()
        return found
    still = dataclasses.replace(config, ttt="none")
    return evaluate(model, tokens, np.ones(len(tokens), dtype=np.int64), still).losses


def _chunks(tokens: Tokens, config: EvaluateConfig) -> Windows:
    """What adaptation by documents reads for each chunk of K targets: up to L tokens, to the end of the chunk."""
    rows = []
    for start, count in zip(*(column.tolist() for column in find_documents(tokens, BOS)), strict=True):
        for first in range(0, count, config.lora.chunk_tokens):
            end = min(first + config.lora.chunk_tokens, count)
            rows.append((start + max(0, end - config.seq_len), start + end, start + first))
    return Windows(*np.array(rows, dtype=np.int64).T)


def _boundary(model: GPT, tokens: Tokens, vocab: int) -> Finding:
    documents = first_documents(tokens, 2, 2 * LENGTH)
    if len(documents) < 2:
        return judge("e3.boundary", None, "fewer than two documents of four tokens", "PR 1797, PR 1874")
    return probes.document_boundary(lambda both: packed(model, both), documents[0], documents[1], vocab)


def probe_scores(
    model: GPT, tokens: Tokens, config: EvaluateConfig, losses: Losses, updates: np.ndarray, comparable: bool
) -> list[Finding]:
    """C2 to C4 on what the evaluation saved: losses [n - 1] and interval log [u, 4]."""
    targets, first = len(tokens) - 1, scored_first(tokens, config)
    logged = probes.intervals(updates, targets)
    if config.ttt != "none" and not len(updates):
        logged = judge(logged.check, None, "adaptation is on, but the interval log is empty", logged.source)
    if config.ttt in BY_DOCUMENT:
        start, count = find_documents(tokens, BOS)
        plan = Windows(start, start + count, start)
    else:
        plan = windows_for(tokens, config, config.stride)
    row = tokens[first.start : first.stop + 1]
    return [
        probes.charged(lambda rows: charge(model, rows, config), row, losses[first], comparable),
        logged,
        probes.score_counts(plan, targets, losses),
    ]
