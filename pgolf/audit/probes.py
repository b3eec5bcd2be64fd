"""Dynamic probes of the four conditions (issue 1017) and of document boundaries: what a scorer does, not what it says.

C1  a loss does not depend on later tokens         -> `future_tokens`, `gradients`
C2  p is a distribution fixed before its target    -> `distribution`
C3  a loss is fixed before anything learns from it -> `intervals`, `zero_rate`
C4  every target is scored once                    -> `score_counts`
and a document does not see the one before it      -> `document_boundary`

Each takes the thing to be probed as a function, so that a test can hand in one that cheats.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pgolf.audit.verdict import Finding, first_few, judge
from pgolf.data.shards import BOS
from pgolf.evaluate.windows import Windows
from pgolf.model.gpt import GPT

Tokens = NDArray[np.uint16]
Losses = NDArray[np.float32]
Score = Callable[[Tokens], Losses]
"""A stream [n] to the loss of each of its n - 1 targets, nats: target j is token j + 1."""
Charge = Callable[[Tokens], Losses]
"""Rows [r, n] of equal length to the losses [r, n - 1] of their targets."""

Answer = Callable[[Tokens, Tokens], Losses]
"""Inputs [r, n] and targets [r, n], which need not follow on them, to losses [r, n]."""
Report = Callable[[str], None]
"""Gets what a probe is at."""

TOLERANCE = 1e-4
"""Nats; float32 on a CPU, where only the shapes of batches differ."""
SUM_TOLERANCE = 1e-4
ISSUE = "issue 1017"


def future_tokens(
    score: Score,
    tokens: Tokens,
    vocab: int,
    cuts: Sequence[int],
    order: NDArray[np.int64] | None = None,
    report: Report = lambda text: None,
) -> Finding:
    """C1: with everything that is scored later replaced at random, the losses that were there before stay.

    `order`: for each target when it gets its loss, None where that is stream order. Only then may a document's start
    be replaced: it decides on the order.
    """
    generator, base, worst = np.random.default_rng(0), score(tokens), (0.0, 0, 0)
    ranks = np.arange(len(tokens) - 1) if order is None else order
    for cut in cuts:
        report(f"tokens behind the first {cut} scores replaced")
        later = np.flatnonzero(ranks >= cut) + 1
        low = 0 if order is None else BOS + 1
        later = later if order is None else later[tokens[later] > BOS]
        changed = tokens.copy()
        shift = generator.integers(1, vocab - low, len(later))
        changed[later] = low + (tokens[later].astype(np.int64) - low + shift) % (vocab - low)  # every one differs
        moved = np.where(ranks < cut, np.nan_to_num(np.abs(score(changed) - base), nan=math.inf), 0)
        if moved.size and not float(moved.max()) <= worst[0]:
            worst = float(moved.max()), int(moved.argmax()), cut
    named = first_few(map(str, cuts))
    text = f"replacing what is scored after {named} targets moves earlier losses by at most {worst[0]:.1e}"
    if worst[0] > TOLERANCE:
        text += f": target {worst[1]} knows what comes after {worst[2]} scores"
    return judge("c1.future_tokens", worst[0] <= TOLERANCE, text, f"{ISSUE} C1: PR 1420, PR 1437")


def gradients(model: GPT, tokens: Tokens, positions: Sequence[int]) -> Finding:
    """C1: d loss_t / d x_u = 0 for every later token u, x being what enters the first layer."""
    ids = torch.from_numpy(tokens[:-1].astype(np.int64))[None]
    targets = torch.from_numpy(tokens[1:].astype(np.int64))[None]
    model.prepare(ids.size(1))
    with torch.no_grad():
        x = model.embed(ids).detach()
    x.requires_grad_(True)
    with _embedded(model, x), torch.enable_grad():
        losses = model.losses(ids, targets)[0]
        flows = {t: torch.autograd.grad(losses[t], x, retain_graph=True)[0][0].abs().amax(-1) for t in positions}
    later = {t: float(flow[t + 1 :].max()) for t, flow in flows.items() if t + 1 < len(flow)}
    own = min(float(flow[: t + 1].max()) for t, flow in flows.items())
    leaks = [f"target {t}: {value:.1e}" for t, value in later.items() if value]
    text = first_few(leaks) if leaks else f"no gradient to later tokens at {len(later)} targets"
    right = False if leaks else True if own > 0 else None
    return judge("c1.gradients", right, text, f"{ISSUE} C1, autograd")


@contextmanager
def _embedded(model: GPT, x: torch.Tensor) -> Iterator[None]:
    """Within, the model starts from x instead of its embedding of the tokens."""
    model.embed = lambda ids: x  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.embed


def distribution(
    answer: Answer, contexts: Sequence[Tokens], vocab: int, rows: int = 1024, report: Report = lambda text: None
) -> Finding:
    """C2: at every place of a context [n], exp(-loss of a) over all tokens a that could follow sums to 1."""
    sums, least = [], math.inf
    for context in contexts:
        total = np.zeros(len(context))
        for first in range(0, vocab, rows):
            report(f"probabilities of tokens {first:,} to {min(first + rows, vocab):,} of {vocab:,}")
            asked = np.arange(first, min(first + rows, vocab), dtype=np.uint16)
            inputs = np.tile(context, (len(asked), 1))
            losses = answer(inputs, np.tile(asked[:, None], (1, len(context)))).astype(np.float64)
            total += np.exp(-losses).sum(0)
            least = min(least, float(losses.min()))
        sums += total.tolist()
    worst = max(sums, key=lambda value: abs(value - 1))
    text = f"sums over all {vocab:,} tokens at {len(sums)} positions lie within {abs(worst - 1):.1e} of 1"
    right = abs(worst - 1) <= SUM_TOLERANCE and least >= -SUM_TOLERANCE
    if not right:
        text = f"a sum over all {vocab:,} tokens is {worst:.6f}, the smallest loss {least:.4f}"
    return judge("c2.distribution", right, text, f"{ISSUE} C2: PR 886, issue 1872")


def charged(charge: Charge, tokens: Tokens, saved: Losses, comparable: bool) -> Finding:
    """C2: the losses [n - 1] that were charged for a row [n] before anything was learned are -ln p of its tokens.

    `comparable`: computed on the same kind of machine; elsewhere another precision may explain a difference.
    """
    found = charge(tokens[None])[0]
    difference = float(np.abs(found - saved).max())
    limit = 2e-3 if comparable else 0.05
    text = f"{len(found)} losses that were charged first differ by at most {difference:.1e} nats from -ln p here"
    right = difference <= limit if comparable or difference <= limit else None
    return judge("c2.charged", right, text, f"{ISSUE} C2: p(x_t) is the loss that is charged")


def intervals(updates: NDArray[np.integer], targets: int) -> Finding:
    """C3: rows (scored, first, end, steps) of an interval log; every step read targets that had their losses."""
    source = f"{ISSUE} C3: issue 402, PR 1376"
    wrong = [
        f"update {i}: targets {first}:{end} with {scored} scored"
        for i, (scored, first, end, _) in enumerate(updates.tolist())
        if not 0 <= first < end <= scored <= targets
    ]
    wrong += [f"update {i + 1} goes back" for i in np.flatnonzero(np.diff(updates[:, 0]) < 0)]
    steps = int(updates[:, 3].sum()) if len(updates) else 0
    text = first_few(wrong) if wrong else f"{len(updates)} updates, {steps} steps, none ahead of the score"
    return judge("c3.intervals", not wrong, text, source)


def zero_rate(adapted: Losses, plain: Losses) -> Finding:
    """C3: adaptation at a rate of zero is no adaptation."""
    difference = float(np.abs(adapted - plain).max())
    text = f"at a rate of 0 losses differ by at most {difference:.1e} from those without adaptation"
    return judge("c3.zero_rate", difference <= TOLERANCE, text, f"{ISSUE} C3")


def score_counts(windows: Windows, targets: int, losses: Losses) -> Finding:
    """C4: the windows score every target once, and there is one finite loss for each."""
    counts = np.zeros(targets, dtype=np.int64)
    outside = 0
    for first, end in zip(windows.first.tolist(), windows.end.tolist(), strict=True):
        counts[max(first, 0) : end] += 1
        outside += max(end - targets, 0) + max(-first, 0)
    never, again = int((counts == 0).sum()), int((counts > 1).sum())
    wrong = {
        "never scored": never, "scored again": again, "outside the stream": outside,
        "losses too few or many": abs(len(losses) - targets), "not finite": int((~np.isfinite(losses)).sum()),
    }  # fmt: skip
    found = [f"{count:,} {name}" for name, count in wrong.items() if count]
    text = first_few(found) if found else f"{targets:,} targets, each scored once"
    return judge("c4.score_counts", not found, text, f"{ISSUE} C4: PR 991, PR 401, PR 549")


def document_boundary(pack: Callable[[Sequence[Tokens]], Losses], first: Tokens, second: Tokens, vocab: int) -> Finding:
    """With the first of two packed documents replaced, the losses of the second stay.

    `pack` gets documents that begin with BOS and returns the loss of every token after each document's BOS, in order.
    """
    generator = np.random.default_rng(0)
    other = first.copy()
    other[1:] = generator.integers(0, vocab, len(first) - 1)
    before, after = pack([first, second]), pack([other, second])
    own = len(second) - 1
    difference = float(np.abs(before[-own:] - after[-own:]).max())
    text = f"replacing the document before moves losses by at most {difference:.1e}"
    return judge("e3.boundary", difference <= TOLERANCE, text, "PR 1797, PR 1874: SmearGate across documents")
