"""Chunk TTT against a twin in plain loops, and the properties that make it a valid evaluation."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate.chunk_ttt import chunk_ttt, learning_rate, plan_chunks
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig
from pgolf.evaluate.run import evaluate, references
from pgolf.evaluate.score import summarize, token_losses, windows_for
from pgolf.evaluate.updates import Update, as_table
from pgolf.evaluate.windows import Windows
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB, SEQ_LEN, STRIDE, CHUNK = 24, 16, 4, 40


def tiny_model(seed=0, std=0.4, dtype=torch.float32):
    torch.manual_seed(seed)
    config = ModelConfig(
        layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=2,
        loop_start=1, loop_end=1, loop_runs=2,
    )  # fmt: skip
    model = GPT(config, VOCAB, dtype).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model


def stream_of(length, seed=0):
    stream = np.random.default_rng(seed).integers(2, VOCAB, length).astype(np.uint16)
    stream[::37] = 1
    return stream


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokens():
    return stream_of(171)  # 170 targets: four chunks of 40 and one of 10


def settings_of(*, documents=False, batch_tokens=64, seq_len=SEQ_LEN, stride=STRIDE, **chunk):
    defaults = {"chunk_tokens": CHUNK, "lr": 0.05, "epochs": 2, "rows_per_step": 1}
    return EvaluateConfig(
        seq_len=seq_len, stride=stride, batch_tokens=batch_tokens, isolate_documents=documents,
        ttt="chunk", chunk=ChunkTTTConfig(**(defaults | chunk)),
    )  # fmt: skip


def adapted(model, tokens, config, report=lambda *done: None):
    return chunk_ttt(model, tokens, windows_for(tokens, config, config.stride), config, report)


def unadapted(model, tokens, config):
    return token_losses(model, tokens, windows_for(tokens, config, config.stride), config.batch_tokens)


# The twin: one target and one row at a time, weights and momentum in dictionaries, everything in float64.


def window_of(tokens, target, documents):
    """(first token, first scored target) of the window that scores a target."""
    start = origin = max(i for i in range(target + 1) if i == 0 or (documents and tokens[i] == 1))
    while target >= start + SEQ_LEN:
        start += STRIDE
    return start, start if start == origin else start + SEQ_LEN - STRIDE


def loss_alone(model, tokens, start, target):
    ids = torch.tensor(tokens[start : target + 1].astype(np.int64))[None]
    return -torch.log_softmax(model(ids)[0, -1].double(), 0)[int(tokens[target + 1])]


def loss_of_row(model, tokens, row, documents):
    starts = [t for t in range(row, row + SEQ_LEN) if t == row or (documents and tokens[t] == 1)]
    losses = []
    for start, end in itertools.pairwise([*starts, row + SEQ_LEN]):
        ids = torch.tensor(tokens[start : end + 1].astype(np.int64))
        logits = model(ids[None, :-1])[0].double()
        losses.append(logits.logsumexp(1) - logits[range(end - start), ids[1:]])
    return torch.cat(losses).mean()


def slow_chunk_ttt(model, tokens, config, reset_momentum=False):
    chunk, total = config.chunk, len(tokens) - 1
    model = copy.deepcopy(model)
    model.prepare(SEQ_LEN)
    weights = dict(model.named_parameters())
    average = {name: w.detach().clone() for name, w in weights.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    chunks = math.ceil(total / chunk.chunk_tokens)
    horizon = chunks - 1 if chunk.max_train_chunks is None else min(chunks - 1, chunk.max_train_chunks)
    where = [window_of(tokens, target, config.isolate_documents) for target in range(total)]
    out = {}
    for c in range(chunks):
        scorer = copy.deepcopy(model)
        if chunk.ema is not None:
            scorer.load_state_dict(average)
        for target, (start, first) in enumerate(where):
            if min(first // chunk.chunk_tokens, chunks - 1) == c:
                with torch.no_grad():
                    out[target] = loss_alone(scorer, tokens, start, target).item()
        if c >= horizon:
            continue
        a, b = c * chunk.chunk_tokens, min((c + 1) * chunk.chunk_tokens, total)
        rows = [a + i * SEQ_LEN for i in range((b - a) // SEQ_LEN)]
        lr = chunk.lr * (chunk.lr_floor + (1 - chunk.lr_floor) / 2 * (1 + math.cos(math.pi * c / horizon)))
        if c < chunk.warmup_chunks:
            lr *= (c + 1) / chunk.warmup_chunks
        epochs = chunk.epochs
        if chunk.hard_epochs:
            mine = [out[target] for row in rows for target in range(row, row + SEQ_LEN)]
            if np.mean(mine) > np.mean(list(out.values())):
                epochs = chunk.hard_epochs
        if reset_momentum:
            velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
        for _ in range(epochs):
            for at in range(0, len(rows), chunk.rows_per_step):
                step = rows[at : at + chunk.rows_per_step]
                loss = sum(loss_of_row(model, tokens, row, config.isolate_documents) for row in step) / len(step)
                gradients = torch.autograd.grad(loss, list(weights.values()))
                if chunk.sam:
                    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
                    before = {name: w.detach().clone() for name, w in weights.items()}
                    for w, gradient in zip(weights.values(), gradients, strict=True):
                        w.data += chunk.sam * gradient / norm
                    loss = sum(loss_of_row(model, tokens, row, config.isolate_documents) for row in step) / len(step)
                    gradients = torch.autograd.grad(loss, list(weights.values()))
                    for name, w in weights.items():
                        w.data.copy_(before[name])
                norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
                scale = min(1.0, chunk.grad_clip / (norm + 1e-6))
                for (name, w), gradient in zip(weights.items(), gradients, strict=True):
                    velocity[name] = chunk.momentum * velocity[name] + scale * gradient + chunk.weight_decay * w.data
                    block = int(name.split(".")[1]) if name.startswith("blocks.") else len(model.blocks) - 1
                    w.data -= lr * ((block + 1) / len(model.blocks) if chunk.block_rates else 1) * velocity[name]
        for name, w in weights.items():
            average[name] = (chunk.ema or 0) * average[name] + (1 - (chunk.ema or 0)) * w.detach()
    return np.array([out[target] for target in range(total)])


@pytest.mark.parametrize("options", [
    {},
    {"documents": True, "rows_per_step": 2, "grad_clip": 0.3},
    {"documents": True, "rows_per_step": 2, "batch_tokens": SEQ_LEN},
    {"ema": 0.6, "max_train_chunks": 2, "rows_per_step": 2, "epochs": 1},
    {"hard_epochs": 3, "epochs": 1, "warmup_chunks": 2},
    {"sam": 0.2, "epochs": 1, "rows_per_step": 2},
    {"block_rates": True, "weight_decay": 0.3, "lr_floor": 0.5, "epochs": 1},
], ids=["plain", "documents", "documents by rows", "ema, short", "hard, warm-up", "sam", "v2"])  # fmt: skip
def test_agrees_with_plain_loops(options):
    model, tokens, config = tiny_model(dtype=torch.float64), stream_of(131), settings_of(**options)
    expected = slow_chunk_ttt(model, tokens, config)
    found, updates = adapted(model, tokens, config)
    if "hard_epochs" in options:
        assert {update.steps for update in updates} == {2, 6}, "the case must hold hard and easy chunks"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert np.abs(unadapted(model, tokens, config)[CHUNK + SEQ_LEN :] - expected[CHUNK + SEQ_LEN :]).max() > 1e-2


def test_momentum_lives_on_between_chunks():
    model, tokens, config = tiny_model(dtype=torch.float64), stream_of(101), settings_of(epochs=1)
    wrong = slow_chunk_ttt(model, tokens, config, reset_momentum=True)
    assert np.abs(adapted(model, tokens, config)[0] - wrong).max() > 1e-3


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("change", [{"lr": 0.0}, {"max_train_chunks": 0}, {"chunk_tokens": 1000}])
def test_without_steps_it_is_the_plain_evaluation_bit_for_bit(model, tokens, documents, change):
    config = settings_of(documents=documents, batch_tokens=SEQ_LEN, **change)
    found, updates = adapted(model, tokens, config)
    assert np.array_equal(found.view(np.uint32), unadapted(model, tokens, config).view(np.uint32))
    assert bool(updates) == ("lr" in change)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("cut", [3, 39, 40, 41, 79, 100, 130, 169])
def test_no_token_changes_a_loss_before_it(model, tokens, cut, documents):
    config = settings_of(documents=documents)
    before, _ = adapted(model, tokens, config)
    changed = tokens.copy()
    ordinary = changed[cut + 1 :] != 1  # documents stay where they are: the windows must be the same
    changed[cut + 1 :][ordinary] = (changed[cut + 1 :][ordinary] - 2 + 7) % (VOCAB - 2) + 2
    after, _ = adapted(model, changed, config)
    assert np.array_equal(before[:cut].view(np.uint32), after[:cut].view(np.uint32))
    assert before[cut] != after[cut], "the first changed token is target `cut`"


def test_a_scored_token_changes_losses_far_beyond_the_context(model, tokens):
    changed = tokens.copy()
    changed[5] = changed[5] % (VOCAB - 2) + 2
    config = settings_of()
    before, after = adapted(model, tokens, config)[0], adapted(model, changed, config)[0]
    assert np.array_equal(before[SEQ_LEN + 5 : CHUNK], after[SEQ_LEN + 5 : CHUNK]), "first chunk, another window"
    assert (before[CHUNK + STRIDE :] != after[CHUNK + STRIDE :]).mean() > 0.9


SIZES = [1, 5, 12, 16, 17, 39, 40, 41, 79, 80, 83, 120, 163]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("stride", [1, 3, 4, 7, 16])
def test_every_window_is_in_the_chunk_of_its_first_target(stride, documents):
    for targets in SIZES:
        tokens = stream_of(targets + 1)
        windows = windows_for(tokens, settings_of(documents=documents, stride=stride), stride)
        chunks = plan_chunks(windows, targets, CHUNK)
        assert len(chunks) == math.ceil(targets / CHUNK)
        again = Windows(*(np.concatenate(column) for column in zip(*(chunk.windows for chunk in chunks), strict=True)))
        assert all(np.array_equal(a, b) for a, b in zip(again, windows, strict=True))
        for index, chunk in enumerate(chunks):
            assert (chunk.first, chunk.end) == (index * CHUNK, min((index + 1) * CHUNK, targets))
            assert all(min(first // CHUNK, len(chunks) - 1) == index for first in chunk.windows.first)


@pytest.mark.parametrize(("targets", "stride", "chunk_tokens"), [*((size, 4, 40) for size in SIZES), (50, 15, 17)])
def test_every_target_has_its_loss_before_it_is_trained_on(model, targets, stride, chunk_tokens):
    config = settings_of(stride=stride, chunk_tokens=chunk_tokens)
    written = []
    losses, updates = adapted(model, stream_of(targets + 1), config, lambda *report: written.append(report))
    assert len(losses) == targets
    assert np.isfinite(losses).all()
    chunks = math.ceil(targets / chunk_tokens)
    assert [report[-2:] for report in written] == [(i + 1, chunks) for i in range(chunks)]
    assert sum(len(earlier) for earlier, *_ in written) == targets
    for earlier, places, *_ in written:  # what is scored stays as it is
        assert np.array_equal(earlier.view(np.uint32), losses[places].view(np.uint32))
    rows = chunk_tokens // SEQ_LEN
    assert [update.first for update in updates] == [c * chunk_tokens for c in range(chunks - 1)]
    for update, (_, places, *_) in zip(updates, written[:-1], strict=True):
        assert update == Update(places.stop, update.first, update.first + rows * SEQ_LEN, 2 * rows)
        assert update.end <= update.scored


def test_the_log_is_a_table():
    updates = [Update(96, 0, 80, 6), Update(192, 96, 176, 3)]
    assert as_table(updates).tolist() == [[96, 0, 80, 6], [192, 96, 176, 3]]
    assert as_table([]).shape == (0, 4)
    assert as_table([]).dtype == torch.int32


def test_the_rate_is_a_cosine_that_would_reach_zero_at_the_first_untrained_chunk():
    config = ChunkTTTConfig(lr=0.8)
    rates = [learning_rate(config, chunk, 4) for chunk in range(5)]
    assert rates == pytest.approx([0.8, 0.4 + 0.4 / math.sqrt(2), 0.4, 0.4 - 0.4 / math.sqrt(2), 0.0])
    warm = [learning_rate(dataclasses.replace(config, warmup_chunks=2), chunk, 4) for chunk in range(4)]
    assert warm == pytest.approx([rates[0] / 2, *rates[1:4]])
    assert learning_rate(config, 0, 1) == 0.8


def states_by_chunk(model, tokens, config):
    states = []
    adapted(model, tokens, config, lambda *_: states.append(copy.deepcopy(model.state_dict())))
    return states


@pytest.mark.parametrize(("options", "frozen"), [
    ({}, ()),
    ({"freeze_blocks": 2}, ("blocks.0.", "blocks.1.")),
    ({"freeze_embedding": True}, ("tok_emb.",)),
    ({"freeze_blocks": 3, "freeze_embedding": True}, ("blocks.", "tok_emb.")),
])  # fmt: skip
def test_frozen_parts_stay_and_all_others_learn(model, tokens, options, frozen):
    first, *_, last = states_by_chunk(model, tokens, settings_of(**options))
    still = {name for name in first if torch.equal(first[name], last[name])}
    assert still == {name for name in first if name.startswith(frozen or ("-",))}


def test_training_stops_where_it_should(model, tokens):
    for options, trained in (({}, 4), ({"max_train_chunks": 2}, 2), ({"max_train_chunks": 9}, 4)):
        states = states_by_chunk(model, tokens, settings_of(**options))
        moved = [not torch.equal(a["tok_emb.weight"], b["tok_emb.weight"]) for a, b in itertools.pairwise(states)]
        assert moved == [True] * trained + [False] * (4 - trained)


@pytest.mark.parametrize("options", [{}, {"ema": 0.5}, {"freeze_blocks": 1}])
def test_the_model_is_given_back_as_it_was(tokens, options):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    adapted(model, tokens, settings_of(**options))
    with pytest.raises(InputError, match=r"lower `evaluate\.chunk\.lr`"):
        adapted(model, tokens, settings_of(lr=1e30, **options))
    with pytest.raises(ZeroDivisionError):
        adapted(
            model, tokens, settings_of(**options), lambda losses, places, remark, done, total: 1 // (total - done - 1)
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_rows_per_forward_pass_do_not_change_the_update(model, tokens):
    one = adapted(model, tokens, settings_of(rows_per_step=2, batch_tokens=SEQ_LEN))
    two = adapted(model, tokens, settings_of(rows_per_step=2, batch_tokens=2 * SEQ_LEN))
    assert one[1] == two[1]
    assert one[1][0].steps == 2, "two epochs of one step"
    np.testing.assert_allclose(one[0], two[0], rtol=0, atol=2e-4)
    other, _ = adapted(model, tokens, settings_of(rows_per_step=1))
    assert np.abs(one[0] - other).max() > 1e-2


def markov_text(length, transition_seed, seed):
    """Text in which each token has two likely successors."""
    successors = np.random.default_rng(transition_seed).integers(2, VOCAB, (VOCAB, 2))
    choose = np.random.default_rng(seed).integers(0, 2, length)
    text = np.ones(length, dtype=np.uint16)
    for i in range(1, length):
        text[i] = successors[text[i - 1], choose[i]]
    return text


def test_a_trained_model_gains_on_text_with_habits_of_its_own():
    model = tiny_model(std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.prepare(SEQ_LEN)
    text = torch.from_numpy(markov_text(60 * 8 * SEQ_LEN + 1, 0, 0).astype(np.int64))
    for step in range(60):
        at = step * 8 * SEQ_LEN
        rows = (text[at + k : at + k + 8 * SEQ_LEN].view(8, SEQ_LEN) for k in (0, 1))
        optimizer.zero_grad()
        model.losses(*rows).mean().backward()
        optimizer.step()
    tokens = np.concatenate([markov_text(400, 0, 1), markov_text(1200, 5, 2)])  # half-way other habits
    sizes = np.full(len(tokens), 2, dtype=np.uint16)
    config = settings_of(stride=8, chunk_tokens=64, rows_per_step=4, epochs=3, batch_tokens=1024)
    said = []
    result = evaluate(model, tokens, sizes, config, lambda phase, done, total: said.append((phase, done, total)))
    compared = references(model, tokens, sizes, config, result)
    assert compared.unadapted.bpb - result.score.bpb > 0.05
    assert compared.plain.bpb - result.score.bpb > 0.05
    assert compared.unadapted == summarize(compared.unadapted_losses, sizes[1:])
    assert said[-1] == (f"chunk TTT, {result.score.bpb:.4f} BPB, chunk", 25, 25)
    assert len(said) == 25
    assert sum(update.steps for update in result.updates) == 24 * 3
    unasked = references(model, tokens, sizes, dataclasses.replace(config, measure_gain=False), result)
    assert unasked[:2] == (compared.plain, None)


def test_the_gain_needs_no_pass_of_its_own_on_plain_windows(model, tokens):
    sizes = np.full(len(tokens), 2, dtype=np.uint16)
    config = dataclasses.replace(settings_of(stride=SEQ_LEN), measure_gain=False)
    result = evaluate(model, tokens, sizes, config)
    compared = references(model, tokens, sizes, config, result)
    assert compared.plain == compared.unadapted != result.score
    assert np.array_equal(compared.unadapted_losses, compared.plain_losses)


@pytest.mark.parametrize(("change", "message"), [
    ({"chunk_tokens": 0}, r"`chunk_tokens` is 0; it must be at least 1"),
    ({"epochs": 0}, r"`epochs` is 0"),
    ({"hard_epochs": 0}, r"`hard_epochs` is 0"),
    ({"rows_per_step": 0}, r"`rows_per_step` is 0"),
    ({"lr": -0.1}, r"`lr` is -0\.1; it must not be negative"),
    ({"freeze_blocks": -1}, r"`freeze_blocks` is -1"),
    ({"max_train_chunks": -1}, r"`max_train_chunks` is -1"),
    ({"warmup_chunks": -1}, r"`warmup_chunks` is -1"),
    ({"momentum": 1.0}, r"`momentum` is 1\.0; .* less than 1"),
    ({"ema": 1.0}, r"`ema` is 1\.0"),
    ({"sam": -0.1}, r"`sam` is -0\.1"),
    ({"lr_floor": 1.0}, r"`lr_floor` is 1\.0"),
    ({"grad_clip": 0.0}, r"`grad_clip` is 0\.0"),
    ({"learning_rate": 0.1}, r"`evaluate\.chunk\.learning_rate` is not a parameter"),
])  # fmt: skip
def test_mistakes_in_the_section(change, message):
    with pytest.raises(InputError, match=message):
        build(EvaluateConfig, {"chunk": change}, "evaluate")


def test_chunks_that_hold_no_row_are_refused_only_where_they_matter():
    with pytest.raises(InputError, match=r"`chunk\.chunk_tokens` 15 must hold at least one row of `seq_len` 16"):
        settings_of(chunk_tokens=15)
    EvaluateConfig(seq_len=16, stride=4, chunk=ChunkTTTConfig(chunk_tokens=15))


def test_more_frozen_blocks_than_there_are_is_refused(model, tokens):
    with pytest.raises(InputError, match=r"`evaluate\.chunk\.freeze_blocks` is 4, the model has 3"):
        adapted(model, tokens, settings_of(freeze_blocks=4))


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    tokens, config, model = stream_of(171), settings_of(batch_tokens=128), tiny_model()
    expected, updates = adapted(model, tokens, config)
    found, same = adapted(model.cuda(), tokens, config)
    assert updates == same
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)
