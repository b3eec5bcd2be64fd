"""The probes on a run of ours: its shipped artifact, its evaluation settings, the beginning of its validation set.

Everything runs in float32 on the CPU, through the same code, with windows and chunks scaled down to tens of tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from pgolf.audit import probes
from pgolf.audit.probes import Losses, Tokens
from pgolf.audit.verdict import Finding, judge
from pgolf.data.shards import BOS
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.run import evaluate
from pgolf.evaluate.score import windows_for
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT

LENGTH, CONTEXT = 64, 7
"""Tokens of a scaled window, and of the contexts whose whole distribution is summed up."""


def scaled(config: EvaluateConfig, length: int = LENGTH) -> EvaluateConfig:
    """The same evaluation with windows of `length` tokens and chunks of two windows."""
    length = min(length, config.seq_len)
    stride = max(1, round(config.stride * length / config.seq_len))
    chunk = dataclasses.replace(config.chunk, chunk_tokens=2 * length, rows_per_step=1, warmup_chunks=0)
    return dataclasses.replace(
        config, seq_len=length, stride=stride, batch_tokens=4 * length, chunk=chunk, subset_targets=None
    )


def charge(model: GPT, rows: Tokens) -> Losses:
    """Rows [r, n] to losses [r, n - 1] by one forward pass."""
    ids = torch.from_numpy(rows.astype(np.int64))
    model.prepare(ids.size(1) - 1)
    with torch.no_grad():
        losses: Losses = model.losses(ids[:, :-1], ids[:, 1:]).numpy()
    return losses


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


def probe_model(model: GPT, tokens: Tokens, config: EvaluateConfig, vocab: int) -> list[Finding]:
    """C1, C2, C3 at a rate of zero, and E.3 of a model and the way it is evaluated."""
    small = scaled(config)
    length = small.seq_len
    stream = tokens[: 5 * length + 3]
    zeros = np.ones(len(stream), dtype=np.int64)

    def score(text: Tokens, settings: EvaluateConfig = small) -> Losses:
        return evaluate(model, text, zeros[: len(text)], settings).losses

    inside = sorted({length // 2, length + 1, 2 * length + 1, len(stream) - 2})
    inside = [position for position in inside if 1 < position < len(stream) - 1]
    contexts = [tokens[: min(CONTEXT, len(tokens) - 1)]]
    found = [
        probes.future_tokens(score, stream, vocab, inside),
        probes.gradients(model, stream[: length + 1], [0, length // 2, min(length, len(stream) - 1) - 2]),
        probes.distribution(lambda rows: charge(model, rows), contexts, vocab),
    ]
    if config.ttt == "chunk":
        still = dataclasses.replace(small, chunk=dataclasses.replace(small.chunk, lr=0.0))
        found.append(probes.zero_rate(score(stream, still), score(stream, dataclasses.replace(small, ttt="none"))))
    return [*found, _boundary(model, tokens, vocab)]


def _boundary(model: GPT, tokens: Tokens, vocab: int) -> Finding:
    """Two of the first documents that have a few tokens."""
    starts = np.flatnonzero(tokens[: 1 << 20] == BOS)
    documents = [tokens[a:b][: 2 * LENGTH] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]
    documents = [document for document in documents if len(document) >= 4][:2]
    if len(documents) < 2:
        return judge("e3.boundary", None, "fewer than two documents of four tokens", "PR 1797, PR 1874")
    return probes.document_boundary(lambda both: packed(model, both), documents[0], documents[1], vocab)


def probe_scores(
    model: GPT, tokens: Tokens, config: EvaluateConfig, losses: Losses, updates: np.ndarray, comparable: bool
) -> list[Finding]:
    """C2 to C4 on what the evaluation saved: losses [n - 1] and interval log [u, 4]."""
    targets = len(tokens) - 1
    first = min(config.seq_len, targets, LENGTH)
    logged = probes.intervals(updates, targets)
    if config.ttt != "none" and not len(updates):
        logged = judge(logged.check, None, "adaptation is on, but the interval log is empty", logged.source)
    return [
        probes.charged(lambda rows: charge(model, rows), tokens[: first + 1], losses, comparable),
        logged,
        probes.score_counts(windows_for(tokens, config, config.stride), targets, losses),
    ]
