"""Remembered keys and values against plain loops, and what must hold of any schedule that scores first."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from document_models import CHUNK, LENGTH, assert_no_token_reaches_back, settings_of, stream_of, tiny_model

from pgolf.audit.probes import intervals
from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.cached_ttt import cached_passes, chunk_size
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.document_ttt import document_ttt
from pgolf.evaluate.documents import find_documents, plan_batches
from pgolf.evaluate.score import token_losses, windows_for
from pgolf.evaluate.updates import as_table
from pgolf.model.visit import Visit

TARGETS, STRIDE = (5, 1, 42, 4, 16, 23), 8


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokens():
    return stream_of(*TARGETS)


def cached(**options):
    return settings_of("cached", stride=STRIDE, **options)


@pytest.mark.parametrize(
    "options", [{}, {"chunk_tokens": 3, "growth": 2}, {"chunk_tokens": LENGTH}, {"documents": 6, "growth": 1}]
)
def test_without_a_rate_it_is_the_sliding_evaluation(model, tokens, options):
    config = cached(lr=0.0, weight_decay=0.0, **options)
    found, _ = document_ttt(model, tokens, config)
    plain = token_losses(model, tokens, windows_for(tokens, config, STRIDE), 256)
    np.testing.assert_allclose(found, plain, rtol=0, atol=2e-6)


def slow_cached(model, tokens, config):
    """One document and one token at a time; a list of keys and values per layer; torch's own AdamW."""
    lora, documents = config.lora, find_documents(tokens, 1)
    out = np.empty(len(tokens) - 1)
    model.prepare(LENGTH)
    for index, batch in enumerate(plan_batches(documents.targets, lora.documents)):
        adapters = Adapters(model, lora, len(batch))
        adapters.reset(index)
        for row, document in enumerate(batch):
            weights = [torch.nn.Parameter(weight[row : row + 1].clone()) for weight in adapters.weights]
            optimizer = torch.optim.AdamW(
                weights, lr=lora.lr, betas=(0.0, lora.beta2), eps=lora.eps, weight_decay=lora.weight_decay
            )
            text = torch.tensor(
                tokens[documents.start[document] :][: documents.targets[document] + 1].astype(np.int64)
            )[None]
            memory, position = None, 0
            while position < text.size(1) - 1:
                held = 0 if memory is None else memory[0][0].size(1)
                if held == LENGTH:
                    again, held = text[:, position - STRIDE : position], STRIDE
                    _, memory = run(model, adapters, weights, again, None, 0)
                wanted = lora.chunk_tokens if lora.growth is None else max(lora.chunk_tokens, position // lora.growth)
                size = min(wanted, LENGTH - held, text.size(1) - 1 - position)
                lead = min(held, 1)
                ids = text[:, position - lead : position + size]
                hidden, memory = run(model, adapters, weights, ids, memory, lead)
                logits = hidden @ model.tok_emb.weight.T
                a, b = weights[-2:]
                logits = logits + lora.alpha / lora.rank * hidden @ a[0, 0].T @ b[0, 0].T
                logits = model.config.softcap * torch.tanh(logits / model.config.softcap)
                targets = text[0, position + 1 : position + size + 1]
                losses = -torch.log_softmax(logits[0], -1)[range(size), targets]
                place = documents.start[document] + position
                out[place : place + size] = losses.detach().numpy()
                position += size
                if position < text.size(1) - 1:
                    optimizer.zero_grad()
                    losses.mean().backward()
                    if lora.optimizer == "normalized":
                        for weight in weights:
                            with torch.no_grad():
                                weight *= 1 - lora.lr * lora.weight_decay
                                norm = weight.grad.square().sum().sqrt() + 1e-30  # A has no gradient while B is zero
                                weight -= lora.lr * weight.numel() ** 0.5 * weight.grad / norm
                    else:
                        optimizer.step()
    return out


def run(model, adapters, weights, ids, memory, lead):
    """The final states and the new memory, detached."""
    visits = adapters.visit(weights, remember=True)
    if memory is not None:
        for visit, past in zip(visits, memory, strict=False):
            visit.past = past
    hidden = model.hidden(ids, visits=visits[:-1], lead=lead)
    return hidden, [tuple(part.detach() for part in visit.past) for visit in visits[:-1]]


@pytest.mark.parametrize(
    "options", [{"lr": 0.01}, {"lr": 0.03, "chunk_tokens": 3, "growth": 2, "optimizer": "normalized"}]
)
def test_agrees_with_one_document_at_a_time(tokens, options):
    model, config = tiny_model(dtype=torch.float64), cached(warm_start=False, **options)
    found, _ = document_ttt(model, tokens, config)
    expected = slow_cached(model, tokens, config)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    still = dataclasses.replace(config, lora=dataclasses.replace(config.lora, lr=0.0))
    assert np.abs(document_ttt(model, tokens, still)[0] - expected).max() > 1e-2


def test_old_keys_stay_and_no_gradient_flows_into_them(model):
    model.prepare(LENGTH)
    adapters = Adapters(model, cached().lora, 1)
    adapters.reset(0)
    for weight in adapters.weights[1::2]:
        weight.normal_(std=0.3)
    ids = torch.from_numpy(stream_of(12)[None, :12].astype(np.int64))
    _, memory = run(model, adapters, adapters.weights, ids[:, :8], None, 0)
    kept = copy.deepcopy(memory)
    leaves = adapters.leaves(slice(0, 1))
    hidden, longer = run(model, adapters, leaves, ids[:, 7:], memory, 1)
    whole, _ = run(model, adapters, adapters.weights, ids, None, 0)
    torch.testing.assert_close(hidden, whole[:, 8:], rtol=1e-4, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(hidden.sum(), leaves[:-2]))
    for before, after in zip(kept, longer, strict=True):
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old, new[:, :8])
            assert new.size(1) == 12
            assert not new.requires_grad


@pytest.mark.parametrize("cut", [0, 4, 15, 16, 23, 24, 41])
def test_no_token_changes_an_earlier_loss_of_its_document(model, cut):
    assert_no_token_reaches_back(model, 42, cached(growth=2), cut)


def test_the_log_has_every_step_after_its_score(model, tokens):
    _, updates = document_ttt(model, tokens, cached())
    assert intervals(as_table(updates).numpy(), len(tokens) - 1).verdict == "pass"
    assert sum(u.end - u.first for u in updates) == sum((n - 1) // CHUNK * CHUNK for n in TARGETS)
    assert all(a.end <= b.end for a, b in itertools.pairwise(updates))


def test_every_token_passes_once_and_again_where_windows_slide(tokens):
    """The point of it: tokens that go through the model, against those of the published form."""
    counted, model = [], tiny_model()
    hidden = model.hidden
    model.hidden = lambda ids, visits=None, lead=0: (
        counted.append(ids[:, lead:].numel()) or hidden(ids, visits=visits, lead=lead)
    )
    document_ttt(model, stream_of(40), cached())
    again = (40 - LENGTH) // STRIDE
    assert sum(counted) == 40 + again * (LENGTH - STRIDE)
    assert len(counted) == cached_passes(40, cached().lora) + again


def test_chunks_grow_with_the_text_before_them():
    settings, position, sizes = cached(chunk_tokens=3, growth=2).lora, 0, []
    while position < 60:
        sizes.append(chunk_size(position, settings))
        position += sizes[-1]
    assert sizes == [3, 3, 3, 4, 6, 9, 14, 21]
    assert cached_passes(42, settings) == 7
    assert cached_passes(43, settings) == 8
    assert chunk_size(28, settings, factor=2) == 28
    even = dataclasses.replace(settings, growth=None)
    assert {chunk_size(place, even) for place in range(60)} == {3}


def test_visits_keep_the_last_rows():
    visit = Visit({}, remember=True)
    k = torch.arange(6.0).view(3, 2, 1, 1)
    visit.recall(k, k)
    visit.keep(2, 1)
    assert visit.tokens == 1
    assert torch.equal(visit.past[0], k[1:, :1])
    forgetful = Visit({})
    assert forgetful.recall(k, k) == (k, k)
    assert forgetful.tokens == 0


def test_a_normalized_step_has_the_length_of_adamws_first(model):
    lengths = []
    for optimizer in ("normalized", "adamw"):
        adapters = Adapters(model, cached(optimizer=optimizer, weight_decay=0.0, lr=0.5).lora, 2)
        adapters.reset(0)
        before = [weight.clone() for weight in adapters.weights]
        torch.manual_seed(0)
        adapters.step(slice(0, 2), [torch.randn_like(weight) for weight in before], 1)
        changes = [(new - old).flatten(1).norm(dim=1) for new, old in zip(adapters.weights, before, strict=True)]
        lengths.append(torch.stack(changes))
    torch.testing.assert_close(*lengths)
    assert not Adapters(model, cached(optimizer="normalized").lora, 2).second


def test_a_normalized_step_has_no_moments():
    with pytest.raises(InputError, match=r"`beta1` is 0\.5, but `optimizer: normalized` has no moments"):
        build(EvaluateConfig, {"lora": {"beta1": 0.5, "optimizer": "normalized"}}, "evaluate")


def test_some_context_must_be_left():
    section = {"ttt": "cached", "isolate_documents": True, "seq_len": 64, "stride": 64}
    with pytest.raises(InputError, match=r"set `stride` below 64"):
        build(EvaluateConfig, section, "evaluate")
