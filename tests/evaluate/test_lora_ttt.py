"""Adaptation by documents against plain loops with padding and torch's own AdamW, and what makes it valid."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from document_models import (
    CHUNK,
    LENGTH,
    VOCAB,
    SlowLoRA,
    assert_no_token_reaches_back,
    chunk_windows,
    replaced,
    settings_of,
    stream_of,
    tiny_model,
)

from pgolf.audit.probes import intervals
from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate.adapters import Adapters, shapes
from pgolf.evaluate.carry import Carry
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig, LoRAConfig, PhasesConfig
from pgolf.evaluate.document_ttt import document_ttt
from pgolf.evaluate.documents import find_documents, plan_batches
from pgolf.evaluate.run import evaluate, references
from pgolf.evaluate.score import token_losses, windows_for
from pgolf.evaluate.updates import as_table
from pgolf.model.visit import Visit

TARGETS = (5, 1, 21, 4, 9, 26)  # batches of two: (21, 26), (5, 9), (1, 4)
SGD = ChunkTTTConfig(chunk_tokens=LENGTH, lr=0.05, epochs=1, rows_per_step=1)
PHASES = PhasesConfig(prefix_documents=3, count=2, ranks=1)  # before 1 and 3 documents, after batches of two


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokens():
    return stream_of(*TARGETS)


def phased(**options):
    return settings_of("phased", phases=PHASES, chunk=SGD, **options)


def slow_documents(model, tokens, config, phases=()):
    """The published loop; `phases`: (batches before the update, documents that it reads)."""
    model, documents = copy.deepcopy(model), find_documents(tokens, 1)
    queue = plan_batches(documents.targets, config.lora.documents)
    out, kept, phases = np.full(len(tokens) - 1, np.nan), {}, dict(phases)
    for index, rows in enumerate(queue):
        if index in phases:
            scored = np.concatenate(queue[:index][::-1])[: phases[index]]
            slow_sgd(model, tokens, documents.take(scored), config)
            kept = {}
        adapters = Adapters(model, config.lora, len(rows))
        adapters.reset(index)
        weights = adapters.weights
        if config.lora.warm_start and len(rows) in kept:
            weights[::2] = kept[len(rows)][::2]
        kept[len(rows)] = SlowLoRA(model, config, weights).run(tokens, documents.take(rows), out)
    return out


def slow_sgd(model, tokens, documents, config):
    text = np.concatenate([tokens[s : s + n + 1] for s, n in zip(*documents, strict=True)])
    chunks = -(-(len(text) - 1) // SGD.chunk_tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=SGD.momentum)
    for c in range(chunks - 1):
        optimizer.param_groups[0]["lr"] = SGD.lr * 0.5 * (1 + np.cos(np.pi * c / max(chunks - 1, 1)))
        piece = text[c * LENGTH : (c + 1) * LENGTH + 1].astype(np.int64)
        starts = [0, *(i for i in range(1, LENGTH) if piece[i] == 1), LENGTH]
        losses = []
        for a, b in itertools.pairwise(starts):
            losses.append(model.losses(torch.tensor(piece[None, a:b]), torch.tensor(piece[None, a + 1 : b + 1]))[0])
        optimizer.zero_grad()
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SGD.grad_clip)
        optimizer.step()


@pytest.mark.parametrize("options", [
    {},
    {"beta1": 0.8, "warm_start": False, "weight_decay": 3.0},
    {"maps": ("q", "v", "head"), "batch_tokens": 2 * LENGTH},
    {"maps": ("mlp", "o", "k"), "lr": 0.05, "documents": 4, "chunk_tokens": 5},
], ids=["published", "first moment, new A", "some maps, few rows", "other maps, a short batch"])  # fmt: skip
def test_agrees_with_the_padded_loops(tokens, options):
    model, config = tiny_model(dtype=torch.float64), settings_of(**options)
    order = tuple(name for name in ("q", "k", "v", "o", "mlp", "head") if name in config.lora.maps)
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, maps=order))
    found, _ = document_ttt(model, tokens, config)
    expected = slow_documents(model, tokens, config)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    still = dataclasses.replace(config, lora=dataclasses.replace(config.lora, lr=0.0))
    assert np.abs(document_ttt(model, tokens, still)[0] - expected).max() > 1e-2


def test_phases_agree_with_the_padded_loops(tokens):
    model, config = tiny_model(dtype=torch.float64), phased()
    found, updates = document_ttt(model, tokens, config)
    expected = slow_documents(model, tokens, config, [(1, 1), (2, 3)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    without = slow_documents(model, tokens, config)
    assert np.abs(without - expected).max() > 1e-2
    shared = [update for update in updates if update.first == 0 and update.end > 2 * CHUNK]
    assert [update.scored for update in shared] == [47, 61]


@pytest.mark.parametrize("ttt", ["lora", "phased"])
def test_without_a_rate_it_is_the_isolated_evaluation(tokens, ttt):
    """In float64: products of other shapes round otherwise, on some processors by three last places of float32."""
    model = tiny_model(dtype=torch.float64)
    config = settings_of(ttt, lr=0.0, weight_decay=0.0, phases=PHASES, chunk=dataclasses.replace(SGD, lr=0.0))
    found, _ = document_ttt(model, tokens, config)
    windows = chunk_windows(find_documents(tokens, 1))
    assert windows.covers_once(len(tokens) - 1)
    np.testing.assert_allclose(found, token_losses(model, tokens, windows, 64), rtol=0, atol=1e-6)
    short = stream_of(5, 1, LENGTH, 9)
    config = dataclasses.replace(config, ttt="none")
    plain = token_losses(model, short, windows_for(short, config, LENGTH), 64)
    found, _ = document_ttt(model, short, dataclasses.replace(config, ttt=ttt))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cut", [0, 3, 4, 17, 22, 23])
def test_no_token_changes_an_earlier_loss_of_its_document(model, cut):
    assert_no_token_reaches_back(model, 24, settings_of(), cut)


@pytest.mark.parametrize("ttt", ["lora", "phased"])
def test_no_document_changes_the_losses_of_one_scored_before_it(model, tokens, ttt):
    config = phased() if ttt == "phased" else settings_of()
    documents = find_documents(tokens, 1)
    queue = plan_batches(documents.targets, config.lora.documents)
    before, _ = document_ttt(model, tokens, config)
    for index, batch in enumerate(queue):
        changed = tokens
        for row in batch:
            start, targets = documents.start[row], documents.targets[row]
            changed = replaced(changed, slice(start + 1, start + targets))
        after, _ = document_ttt(model, changed, config)
        same = np.array([before[place] == after[place] for place in documents.take(np.concatenate(queue)).places()])
        first = sum(documents.targets[row] for earlier in queue[:index] for row in earlier)
        assert same[:first].all()
        if index + 1 < len(queue) and ttt == "phased":  # what is scored later does learn from it
            later = first + int(documents.targets[batch].sum())
            assert not same[later:].all()


def test_documents_of_a_batch_do_not_know_of_each_other(model):
    config = settings_of(documents=2, warm_start=False)
    one = stream_of(20, 30, seed=1)
    two = replaced(one, slice(21, 50))
    before, after = document_ttt(model, one, config)[0], document_ttt(model, two, config)[0]
    assert np.array_equal(before[:20], after[:20])
    assert (before[20:] != after[20:]).all()


def test_the_log_counts_in_the_order_of_scoring(model, tokens):
    for config in (phased(), settings_of(batch_tokens=LENGTH)):
        _, updates = document_ttt(model, tokens, config)
        table = as_table(updates).numpy()
        assert intervals(table, len(tokens) - 1).verdict == "pass"
        trained = sum((n - 1) // CHUNK * CHUNK for n in TARGETS)
        assert sum(u.end - u.first for u in updates if u.first) + updates[0].end >= trained
        own = [u for u in updates if u.end - u.first <= 2 * CHUNK]
        assert sum(u.end - u.first for u in own) == trained


def test_warm_start_carries_only_a_and_its_decay(model):
    config = LoRAConfig(rank=2, lr=0.1, weight_decay=0.5)
    adapters = Adapters(model, config, 2)
    adapters.reset(3)
    drawn = [weight.clone() for weight in adapters.weights]
    assert all(not weight.any() for weight in drawn[1::2])
    for weight, (_, inputs, _) in zip(drawn[::2], adapters.shapes.values(), strict=True):
        assert 0.8 / inputs**0.5 < weight.abs().max() <= 1 / inputs**0.5
    adapters.step(slice(0, 2), [torch.ones_like(weight) for weight in drawn], 1)
    adapters.decay(0, 2)
    stepped = [weight.clone() for weight in adapters.weights]
    torch.testing.assert_close(stepped[0][1], drawn[0][1] * 0.95 - 0.1)
    torch.testing.assert_close(stepped[0][0], (drawn[0][0] * 0.95 - 0.1) * 0.95**2)
    adapters.reset(4)
    assert all(torch.equal(*pair) for pair in zip(adapters.weights[::2], stepped[::2], strict=True))
    assert not any(weight.any() for weight in adapters.weights[1::2])
    again = Adapters(model, dataclasses.replace(config, warm_start=False), 2)
    for seed, same in ((3, True), (4, False), (3, True)):
        again.reset(seed)
        assert torch.equal(again.weights[0], drawn[0]) == same


@pytest.mark.parametrize("ttt", ["lora", "cached"])
def test_what_is_shared_moves_to_the_mean_of_a_batch(model, tokens, ttt):
    config = settings_of(ttt, carry=0.25, documents=6, stride=8)
    adapters = Adapters(model, config.lora, 6)
    carry = Carry(config.lora.carry)
    adapters.reset(0)
    carry.begin(adapters)
    assert all(torch.equal(weight, weight[:1].expand_as(weight)) for weight in adapters.weights)
    before = [weight[0].clone() for weight in adapters.weights]
    for weight in adapters.weights:
        weight.normal_()
    ends = [weight.clone() for weight in adapters.weights]
    carry.end(adapters)
    adapters.reset(1)
    carry.begin(adapters)
    for weight, start, end in zip(adapters.weights, before, ends, strict=True):
        torch.testing.assert_close(weight, (0.75 * start + 0.25 * end.mean(0)).expand_as(weight))
    # one batch: nothing to start from. Two: the second, of short documents, starts where the first ended.
    one = document_ttt(model, stream_of(30), settings_of(ttt, carry=1.0, documents=1, stride=8))[0]
    two = document_ttt(model, stream_of(30, 4), settings_of(ttt, carry=1.0, documents=1, stride=8))[0]
    apart = document_ttt(model, stream_of(30, 4), settings_of(ttt, documents=1, stride=8))[0]
    assert np.array_equal(one[:29], two[:29])
    assert np.array_equal(two[:30], apart[:30])
    assert (two[30:] != apart[30:]).all()


def test_the_head_of_an_adapting_evaluation_does_not_round(model):
    generator = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(2, 9, 16, generator=generator)).bfloat16()
    targets = torch.randint(VOCAB, (2, 9), generator=generator)
    logits = hidden.double() @ model.tok_emb.weight.bfloat16().double().T
    cap = model.config.softcap
    exact = -torch.log_softmax(cap * torch.tanh(logits / cap), -1).gather(-1, targets[..., None])[..., 0]
    found = model.surprise(hidden, targets, Visit({}))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)
    rounded = model.surprise(hidden, targets)
    assert (rounded - exact).abs().max() > 1e-3


def test_published_adapters():
    """PR 1855: 17 visits, q and o 512 -> 512, k and v 512 -> 256, MLP 512 -> 512, head 512 -> 8192."""
    with torch.device("meta"):
        model = tiny_model(
            layers=11, dim=512, heads=8, kv_heads=4, parallel_from=8, loop_start=3, loop_end=5, loop_runs=3
        )
    found = shapes(model, LoRAConfig().maps)
    assert found == {
        "q": (17, 512, 512), "k": (17, 512, 256), "v": (17, 512, 256), "o": (17, 512, 512), "mlp": (17, 512, 512),
        "head": (1, 512, VOCAB),
    }  # fmt: skip
    assert set(shapes(model, ("head", "q"))) == {"q", "head"}


def test_the_model_is_given_back_as_it_was(tokens):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    document_ttt(model, tokens, phased())
    with pytest.raises(InputError, match=r"lower `evaluate\.lora\.lr`"):
        document_ttt(model, tokens, phased(lr=1e30))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gain_on_text_with_habits_of_its_own():
    """Each document repeats a short cycle: adapters learn it, and the score says so."""
    model = tiny_model(std=0.2)
    generator = np.random.default_rng(0)
    cycles = [generator.permutation(np.arange(2, VOCAB))[:7] for _ in range(4)]
    tokens = np.concatenate([np.append(1, np.resize(cycle, 80)) for cycle in cycles]).astype(np.uint16)
    sizes, said = np.full(len(tokens), 2, dtype=np.uint16), []
    config = settings_of(lr=0.02, documents=2)
    result = evaluate(model, tokens, sizes, config, lambda *report: said.append(report))
    compared = references(model, tokens, sizes, config, result)
    assert compared.unadapted.bpb - result.score.bpb > 0.1
    phase, done, total = said[-1]
    assert (done, total, len(said)) == (4, 4, 2)
    assert phase.startswith(f"lora TTT, {result.score.bpb:.4f} BPB, ")


@pytest.mark.parametrize(("change", "message"), [
    ({"lora": {"rank": 0}}, r"`rank` is 0"),
    ({"lora": {"lr": -1.0}}, r"`lr` is -1\.0"),
    ({"lora": {"beta2": 1.0}}, r"`beta2` is 1\.0"),
    ({"lora": {"carry": 1.5}}, r"`carry` is 1\.5"),
    ({"lora": {"eps": 0.0}}, r"`eps` is 0\.0"),
    ({"lora": {"maps": []}}, r"`maps` is \[\]"),
    ({"lora": {"maps": ["q", "q"]}}, r"none twice"),
    ({"lora": {"chunk_tokens": 4096}}, r"`lora\.chunk_tokens` 4096 must be at most the context"),
    ({"isolate_documents": False}, r"set `isolate_documents: true`"),
    ({"ttt": "phased", "chunk": {"ema": 0.9}}, r"belong to `ttt: chunk`"),
    ({"phases": {"count": 0}}, r"`count` is 0"),
    ({"seconds": 0.0}, r"`seconds` is 0\.0"),
])  # fmt: skip
def test_mistakes_in_the_section(change, message):
    with pytest.raises(InputError, match=message):
        build(EvaluateConfig, {"ttt": "lora", "isolate_documents": True} | change, "evaluate")
