"""The cache of a document's own states: a distribution over the vocabulary, made of scored text alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from document_models import VOCAB, replaced, settings_of, stream_of, tiny_model

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate import neural_cache
from pgolf.evaluate.config import CacheConfig, EvaluateConfig
from pgolf.evaluate.measured import metrics
from pgolf.evaluate.neural_cache import States, look_up, mix
from pgolf.evaluate.run import evaluate, references
from pgolf.lab.cache import Document, fit_cache, fit_gate

CACHE = CacheConfig(sharpness=9.0, gate=0.7, bias=-0.5)
FORMS = ("none", "lora", "cached")


def with_cache(ttt, cache=CACHE, **options):
    """Windows that slide, so that a document's states come from several passes."""
    config = settings_of("lora", stride=8, **options)
    return dataclasses.replace(config, ttt=ttt, cache=cache)


def ones(tokens):
    return np.ones(len(tokens), dtype=np.int64)


def slow_distribution(states, targets, probabilities, t, config):
    """p(v) of target t for all v, in plain loops and float64."""
    weights = []
    for i in range(t):
        cosine = float(states[t] @ states[i] / (states[t].norm() * states[i].norm()))
        weights.append(math.exp(config.sharpness * (cosine - 1)))
    if not weights:
        return probabilities
    total = sum(weights)
    share = 1 / (1 + math.exp(-(config.gate * math.log(total) + config.bias)))
    cached = torch.zeros_like(probabilities)
    for weight, target in zip(weights, targets[:t], strict=True):
        cached[target] += weight / total
    return (1 - share) * probabilities + share * cached


@pytest.mark.parametrize("queries", [5, 1024])
def test_the_loss_is_that_of_a_normalised_mixture(monkeypatch, queries):
    monkeypatch.setattr(neural_cache, "QUERIES", queries)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(17, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (17,), generator=generator)
    p = torch.randn(17, 4, generator=generator, dtype=torch.float64).softmax(-1)
    found = mix(-p[range(17), targets].log(), *look_up(states, targets, CACHE.sharpness), CACHE.gate, CACHE.bias)
    for t in range(17):
        expected = slow_distribution(states, targets, p[t], t, CACHE)
        assert float(expected.sum()) == pytest.approx(1, abs=1e-12)
        assert float(found[t]) == pytest.approx(-math.log(expected[targets[t]]), abs=1e-5)


def test_nothing_that_was_seen_is_near():
    """Opposite states at a sharpness whose weights are below the smallest number, and a token that never came."""
    states, targets = torch.tensor([[1.0, 0], [-1, 0], [1, 0]]), torch.tensor([0, 1, 2])
    losses = torch.tensor([1.0, 70.0, 2.0])
    found = mix(losses, *look_up(states, targets, 300.0), 0.4, -3.0)
    assert found[:2].tolist() == [1.0, 70.0]
    share = 1 / (1 + math.exp(3))
    assert float(found[2]) == pytest.approx(2 - math.log(1 - share), abs=1e-5), "a share went to another token"


@pytest.mark.parametrize("ttt", FORMS)
def test_every_form_mixes_what_its_own_pass_left_behind(ttt):
    """Of one document in one chunk all states are those of the plain forward pass."""
    model, tokens = tiny_model(std=0.5), stream_of(12)
    config = with_cache(ttt, chunk_tokens=12)
    ids = torch.from_numpy(tokens.astype(np.int64))
    model.prepare(12)
    with torch.no_grad():
        states = model.hidden(ids[None, :-1])[0].double()
        p = model(ids[None, :-1])[0].double().softmax(-1)
    expected = [-math.log(slow_distribution(states, ids[1:], p[t], t, CACHE)[ids[t + 1]]) for t in range(12)]
    result = evaluate(model, tokens, ones(tokens), config)
    np.testing.assert_allclose(result.losses, expected, rtol=0, atol=2e-5)
    compared = references(model, tokens, ones(tokens), config, result)
    plain = -np.log(p[range(12), ids[1:]].numpy())
    np.testing.assert_allclose(compared.plain_losses, plain, rtol=0, atol=2e-5)
    np.testing.assert_allclose(compared.unadapted_losses, plain, rtol=0, atol=2e-5)
    assert np.abs(result.losses - plain).max() > 0.01


@pytest.mark.parametrize("ttt", FORMS)
def test_a_model_in_bfloat16_keeps_its_states_so(ttt):
    """Also where it adapts in float32."""
    exact, tokens = tiny_model(std=0.2), stream_of(30, 12)
    expected = evaluate(exact, tokens, ones(tokens), with_cache(ttt)).losses
    model = tiny_model(std=0.2)
    model.dtype = torch.bfloat16
    found = evaluate(model, tokens, ones(tokens), with_cache(ttt)).losses
    assert 1e-6 < np.abs(found - expected).mean() < 0.03


def test_where_nothing_was_found_p_stays():
    """Whatever the constants: else p would not sum to 1."""
    found = look_up(torch.eye(2), torch.tensor([0, 0]), 0.0)
    losses = mix(torch.tensor([1.0, 2.0]), *found, 0.0, 3.0)
    assert losses[0] == 1
    share = 1 / (1 + math.exp(-3))
    assert float(losses[1]) == pytest.approx(-math.log((1 - share) * math.exp(-2) + share))


def watch(monkeypatch, seen):
    """Note how many states are held whenever they are looked at."""
    consult = States.consult
    monkeypatch.setattr(States, "consult", lambda self, *a: (seen.append(len(self.kept)), consult(self, *a)))


def test_a_batch_of_documents_holds_its_own_states_only(monkeypatch):
    seen, tokens = [], stream_of(9, 5, 1, 21, 30, 3)
    watch(monkeypatch, seen)
    evaluate(tiny_model(), tokens, ones(tokens), with_cache("cached", documents=2))
    assert seen == [30 + 21 + 1, 9 + 5 + 1, 3 + 1 + 1]


def test_parts_of_a_stream_give_what_the_whole_gives(monkeypatch):
    """Documents in parts of few states; the stream begins and ends within one."""
    model, tokens, seen = tiny_model(std=0.5), stream_of(9, 5, 1, 21, 30, 3)[3:-1], []
    whole = evaluate(model, tokens, ones(tokens), with_cache("none")).losses
    monkeypatch.setattr(neural_cache, "PART", 12)
    watch(monkeypatch, seen)
    told = []
    parts = evaluate(model, tokens, ones(tokens), with_cache("none"), lambda *done: told.append(done)).losses
    np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-5)
    assert seen == [12 + 1, 21 + 1, 32 + 1], "each target's state is held once, and one of scratch"
    assert told[-1] == ("cache", len(whole), len(whole))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize("ttt", FORMS)
def test_documents_do_not_know_of_each_other(ttt):
    lengths, model = (9, 30, 1, 21), tiny_model(std=0.5)
    config, tokens = with_cache(ttt, warm_start=False, documents=1), stream_of(*lengths)
    together = evaluate(model, tokens, ones(tokens), config)
    first = 0
    for length in lengths:
        alone = tokens[first : first + length + 1]
        if ttt == "none":
            single = evaluate(model, alone, ones(alone), config).losses
            np.testing.assert_allclose(together.losses[first : first + length], single, rtol=0, atol=2e-5)
        other = replaced(tokens, [i for i in range(len(tokens)) if not first <= i <= first + length and tokens[i] != 1])
        changed = evaluate(model, other, ones(tokens), config).losses
        np.testing.assert_array_equal(together.losses[first : first + length], changed[first : first + length])
        first += length


@pytest.mark.parametrize("ttt", FORMS)
def test_no_token_reaches_back(ttt):
    model, tokens = tiny_model(std=0.5), stream_of(40)
    config = with_cache(ttt)
    changed = replaced(tokens, slice(22, 40))
    before, after = (evaluate(model, stream, ones(stream), config).losses for stream in (tokens, changed))
    assert np.array_equal(before[:21].view(np.uint32), after[:21].view(np.uint32))
    assert before[21] != after[21], "the first changed token is target 21"


def test_a_copy_of_what_was_read_costs_less():
    """All tokens twice: the cache knows the second time, and in no way the first."""
    model = tiny_model(std=0.5)
    half = np.random.default_rng(2).permutation(np.arange(2, VOCAB))
    tokens = np.concatenate([[1], half, half, [1]]).astype(np.uint16)
    sharp = dataclasses.replace(CACHE, sharpness=30.0)
    plain = evaluate(model, tokens, ones(tokens), with_cache("none", CacheConfig())).losses
    cached = evaluate(model, tokens, ones(tokens), with_cache("none", sharp)).losses
    first, second = slice(0, len(half)), slice(len(half) + 1, 2 * len(half))
    assert (cached[first] >= plain[first] - 1e-6).all(), "q gives nothing to tokens that have not come"
    assert cached[second].mean() < plain[second].mean() - 0.2


def test_the_metrics_tell_what_it_won():
    model, tokens = tiny_model(std=0.5), stream_of(20, 13)
    config = with_cache("none")
    result = evaluate(model, tokens, ones(tokens), config)
    compared = references(model, tokens, ones(tokens), config, result)
    found = metrics(config, result, compared, ones(tokens), None, 1.0, 1)
    assert found["ttt_gain_bpb"] == pytest.approx(compared.unadapted.bpb - result.score.bpb)
    assert found["cache"] == {"sharpness": 9.0, "gate": 0.7, "bias": -0.5}
    assert "training text" in found["cache_legality"]
    plain = with_cache("none", CacheConfig())
    without = evaluate(model, tokens, ones(tokens), plain)
    assert without.score.bpb == pytest.approx(compared.unadapted.bpb, abs=1e-6)
    assert "cache" not in metrics(plain, without, references(model, tokens, ones(tokens), plain, without), ones(tokens),
                                  None, 1.0, 1)  # fmt: skip


def test_the_fit_finds_the_constants_that_made_the_text():
    """Targets drawn from the mixture itself: no constants have a lower expected loss than those that drew them."""
    generator = torch.Generator().manual_seed(3)
    truth, documents = CacheConfig(sharpness=60.0, gate=0.5, bias=0.5), []
    places = torch.randn(40, 8, generator=generator)
    for _ in range(12):
        states = places[torch.randint(40, (300,), generator=generator)] + 0.05 * torch.randn(
            300, 8, generator=generator
        )
        targets = torch.zeros(300, dtype=torch.long)
        p = torch.full((50,), 0.02, dtype=torch.float64)
        unit = torch.nn.functional.normalize(states.double(), dim=-1)
        for t in range(300):
            weights = ((unit[:t] @ unit[t] - 1) * truth.sharpness).exp()
            share = torch.sigmoid(truth.gate * weights.sum().clamp_min(1e-38).log() + truth.bias)
            cached = torch.zeros(50, dtype=torch.float64).index_add_(0, targets[:t], weights)
            q = (1 - share) * p + share * cached / weights.sum() if t else p
            targets[t] = torch.multinomial(q, 1, generator=generator)
        documents.append(Document(torch.full((300,), math.log(50)), states, targets))
    pairs = [look_up(document.states, document.targets, truth.sharpness) for document in documents]
    losses, columns = torch.cat([d.losses for d in documents]), [torch.cat(c) for c in zip(*pairs, strict=True)]
    gate, bias, loss = fit_gate(losses, *columns)
    assert gate == pytest.approx(truth.gate, abs=0.1)
    assert bias == pytest.approx(truth.bias, abs=0.3)
    at_truth = float(mix(losses, *columns, truth.gate, truth.bias).mean())
    assert at_truth - 0.01 < loss <= at_truth + 1e-6
    found, best = fit_cache(documents)
    assert best <= loss + 1e-4, "a search over sharpness too does not find worse"
    assert 30 < found.sharpness < 120
    assert best < math.log(50) - 0.1


def test_a_loss_belongs_to_the_constants_beside_it():
    """Here the cache knows most where it finds least, so that the best gate would be negative, which none may be."""
    states = torch.cat([torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), torch.ones(30, 64)])
    document = Document(torch.full((60,), 3.0), states, torch.cat([torch.zeros(30), torch.arange(1, 31)]).long())
    told = []
    found, best = fit_cache([document], lambda *pair: told.append(pair))
    assert fit_gate(document.losses, *look_up(states, document.targets, found.sharpness))[0] < 0
    assert told[-1] == (found, best)
    for constants, loss in told:
        assert constants.gate == 0
        pairs = look_up(states, document.targets, constants.sharpness)
        assert loss == pytest.approx(float(mix(document.losses, *pairs, 0.0, constants.bias).mean()), abs=2e-3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cache": {"sharpness": -1.0}}, "`sharpness` is -1"),
        ({"cache": {"gate": -0.1}}, "`gate` is -0.1"),
        ({"cache": {"sharpness": 100.0}}, "`cache` adapts to documents: set `isolate_documents: true`"),
        (
            {"cache": {"sharpness": 100.0}, "isolate_documents": True, "ttt": "chunk"},
            "`cache` wants whole documents, `ttt: chunk` scores parts",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(section, message):
    with pytest.raises(InputError) as error:
        build(EvaluateConfig, section, "evaluate")
    assert message in str(error.value)


def test_a_cache_alone_asks_nothing_of_adapters():
    """Windows shorter than the default chunk of `lora`, which nobody uses."""
    section = {"cache": {"sharpness": 100.0}, "isolate_documents": True, "seq_len": 32, "stride": 16}
    assert build(EvaluateConfig, section, "evaluate").adapts
