"""Losses against a twin that gives each target its own context alone, and the arithmetic of the score."""

import math

import numpy as np
import pytest
import torch

from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.run import evaluate, references
from pgolf.evaluate.score import subset_scores, summarize, token_losses, windows_for
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB = 24


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelConfig(
        layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=2,
        loop_start=1, loop_end=1, loop_runs=2,
    )  # fmt: skip
    model = GPT(config, VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def tokens():
    stream = np.random.default_rng(0).integers(2, VOCAB, 90).astype(np.uint16)
    stream[[0, 11, 12, 50]] = 1
    return stream


def settings_of(seq_len, stride, batch_tokens=64, documents=False):
    return EvaluateConfig(seq_len=seq_len, stride=stride, batch_tokens=batch_tokens, isolate_documents=documents)


def context_start(tokens, target, seq_len, stride, documents):
    """First token that target t (token t + 1) may see."""
    origin = max(i for i in range(target + 1) if i == 0 or tokens[i] == 1) if documents else 0
    start = origin
    while target >= start + seq_len:
        start += stride
    return start


def losses_one_by_one(model, tokens, seq_len, stride, documents):
    model.prepare(seq_len)
    out = []
    with torch.no_grad():
        for target in range(len(tokens) - 1):
            start = context_start(tokens, target, seq_len, stride, documents)
            ids = torch.tensor(tokens[start : target + 1].astype(np.int64))[None]
            logits = model(ids)[0, -1].double()
            out.append(-torch.log_softmax(logits, 0)[int(tokens[target + 1])].item())
    return np.array(out)


def scored(model, tokens, config):
    return token_losses(model, tokens, windows_for(tokens, config, config.stride), config.batch_tokens)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("seq_len", "stride"), [(16, 16), (16, 4), (16, 1), (13, 5), (200, 64)])
def test_every_target_is_scored_from_its_own_context(model, tokens, seq_len, stride, documents):
    expected = losses_one_by_one(model, tokens, seq_len, stride, documents)
    found = scored(model, tokens, settings_of(seq_len, stride, max(64, seq_len), documents))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_contexts_matter_to_this_model(model, tokens):
    plain = scored(model, tokens, settings_of(16, 16))
    for other in (settings_of(16, 4), settings_of(16, 16, documents=True)):
        assert np.abs(scored(model, tokens, other) - plain).max() > 1e-2


@pytest.mark.parametrize("documents", [False, True])
def test_size_of_a_batch_does_not_change_the_losses(model, tokens, documents):
    expected = scored(model, tokens, settings_of(16, 4, 16, documents))
    for batch_tokens in (17, 64, 10_000):
        found = scored(model, tokens, settings_of(16, 4, batch_tokens, documents))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("cut", [1, 13, 40, 88])
def test_later_tokens_cannot_change_earlier_losses(model, tokens, cut, documents):
    config = settings_of(16, 4, 64, documents)
    before = scored(model, tokens, config)
    changed = tokens.copy()
    ordinary = changed[cut + 1 :] != 1  # documents stay where they are: the windows must be the same
    changed[cut + 1 :][ordinary] = (changed[cut + 1 :][ordinary] - 2 + 7) % (VOCAB - 2) + 2
    after = scored(model, changed, config)
    assert np.array_equal(before[:cut].view(np.uint32), after[:cut].view(np.uint32))
    assert before[cut] != after[cut], "the first changed token is target `cut`"


def test_progress_counts_every_target(model, tokens):
    seen = []
    windows = windows_for(tokens, settings_of(16, 4), 4)
    token_losses(model, tokens, windows, 64, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (89, 89)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_model_that_diverged_is_an_error(model, tokens):
    broken = GPT(model.config, VOCAB)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.skip_weights[0, 0] = float("nan")
    with pytest.raises(InputError, match="not a number"):
        scored(broken, tokens, settings_of(16, 16))


def test_score_is_nats_per_token_and_bits_per_byte():
    losses, sizes = np.array([1.0, 2.0, 4.5], dtype=np.float32), np.array([0, 3, 2], dtype=np.uint16)
    score = summarize(losses, sizes)
    assert score.tokens == 3
    assert score.bytes == 5
    assert score.loss == pytest.approx(7.5 / 3, rel=1e-15)
    assert score.bpb == pytest.approx(7.5 / (math.log(2) * 5), rel=1e-15)
    assert score.bpb * math.log(2) / score.loss == pytest.approx(3 / 5, rel=1e-15)  # rho = tokens per byte


def test_published_numbers_are_consistent_with_the_formula():
    """PR 2071's rerun: rho of the sidecar, 47,851,520 targets over 151,074,499 bytes."""
    losses = np.full(47_852, 2.40115802, dtype=np.float32)
    sizes = np.zeros(47_852, dtype=np.uint16)
    sizes[0], sizes[1], sizes[2] = 65_535, 65_535, 151_074 - 2 * 65_535
    score = summarize(losses, sizes)
    assert score.bpb * math.log(2) / score.loss == pytest.approx(0.31674, abs=1e-5)
    assert score.bpb == pytest.approx(1.09723551, abs=2e-5)


def test_sums_are_exact_where_float32_and_32_bits_are_not():
    losses = np.array([2.0**24, 1.0, 1.0, 1.0], dtype=np.float32)
    assert float(losses.sum(dtype=np.float32)) != 2.0**24 + 3, "the case cannot tell them apart"
    assert summarize(losses, np.ones(4, dtype=np.uint16)).loss * 4 == 2.0**24 + 3
    sizes = np.full(70_000, 65_535, dtype=np.uint16)
    assert summarize(np.ones(70_000, dtype=np.float32), sizes).bytes == 70_000 * 65_535 > 2**32


def test_bos_target_adds_loss_and_counts_without_bytes(model, tokens):
    sizes = np.where(tokens == 1, 0, 3).astype(np.uint16)
    result = evaluate(model, tokens, sizes, settings_of(16, 4))
    assert result.score.tokens == 89
    assert result.score.bytes == 3 * int((tokens[1:] != 1).sum())
    assert result.score.loss == pytest.approx(result.losses.astype(np.float64).mean(), rel=1e-12)
    bos = [int(t) - 1 for t in np.flatnonzero(tokens == 1)[1:]]
    without = np.delete(result.losses, bos)
    assert abs(float(without.astype(np.float64).sum()) / 89 - result.score.loss) > 1e-3


def test_bytes_of_the_first_token_are_not_scored(model, tokens):
    sizes = np.full(len(tokens), 2, dtype=np.uint16)
    sizes[0] = 999
    assert evaluate(model, tokens, sizes, settings_of(16, 16)).score.bytes == 2 * 89


def test_score_and_what_it_is_compared_with(model, tokens):
    sizes = np.full(len(tokens), 2, dtype=np.uint16)
    phases = []

    def report(phase, done, total):
        phases.append(phase)

    config = settings_of(16, 4)
    result = evaluate(model, tokens, sizes, config, report)
    assert set(phases) == {"sliding"}, "nothing but the score is on the clock"
    assert result.updates == []
    compared = references(model, tokens, sizes, config, result, report)
    plain, sliding = scored(model, tokens, settings_of(16, 16)), scored(model, tokens, config)
    assert result.score == compared.unadapted == summarize(sliding, sizes[1:])
    assert compared.plain == summarize(plain, sizes[1:])
    assert np.array_equal(result.losses, sliding)
    assert list(dict.fromkeys(phases)) == ["sliding", "plain"]
    phases.clear()
    whole = evaluate(model, tokens, sizes, settings_of(16, 16), report)
    passes = len(phases)
    compared = references(model, tokens, sizes, settings_of(16, 16), whole, report)
    assert compared[:2] == (whole.score, whole.score)
    assert whole.score == compared.plain
    assert len(phases) == passes, "a pass was repeated"


@pytest.mark.parametrize("tokens", [[], [1]])
def test_stream_without_targets_is_refused(model, tokens):
    empty = np.array(tokens, dtype=np.uint16)
    with pytest.raises(InputError, match="at least 2"):
        evaluate(model, empty, empty, settings_of(16, 4))


def test_targets_without_any_text_are_refused():
    with pytest.raises(InputError, match="hold no text"):
        summarize(np.ones(3, dtype=np.float32), np.zeros(3, dtype=np.uint16))


def test_losses_and_bytes_of_different_targets_are_not_mixed():
    with pytest.raises(InputError, match="do not belong together"):
        summarize(np.ones(3, dtype=np.float32), np.ones(4, dtype=np.uint16))


def test_smallest_stream(model):
    stream = np.array([1, 5], dtype=np.uint16)
    result = evaluate(model, stream, np.array([0, 4], dtype=np.uint16), settings_of(16, 4))
    assert (result.score.tokens, result.score.bytes) == (1, 4)
    np.testing.assert_allclose(result.losses, losses_one_by_one(model, stream, 16, 4, False), rtol=1e-4)


def test_the_score_of_the_first_targets_has_a_name_of_its_own():
    losses, sizes = np.array([1.0, 2.0, 9.0], dtype=np.float32), np.array([1, 2, 4])
    assert subset_scores("plain", losses, sizes, None) == {}
    part = subset_scores("plain", losses, sizes, 2)
    assert part == {"plain_subset_loss": 1.5, "plain_subset_bpb": pytest.approx(3 / (3 * math.log(2)))}
    with pytest.raises(InputError, match=r"`evaluate\.subset_targets` is 4, there are only 3"):
        subset_scores("plain", losses, sizes, 4)
