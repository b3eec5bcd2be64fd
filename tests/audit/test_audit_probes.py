"""The probes of the four conditions: our evaluation passes each, and each finds the cheat that it is for."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.audit import probes
from pgolf.audit.ours import answer, charge, packed, probe_model, probe_scores, scaled
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig
from pgolf.evaluate.run import evaluate
from pgolf.evaluate.windows import Windows, plan_windows
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB = 24
STREAM = np.random.default_rng(0).integers(2, VOCAB, 171).astype(np.uint16)
STREAM[::37] = 1
POSITIONS = [41, 115]
CONTEXTS = [STREAM[:7], STREAM[30:50]]


def tiny(**changes) -> GPT:
    torch.manual_seed(0)
    shape = {"layers": 2, "dim": 16, "heads": 2, "kv_heads": 1, "mlp_mult": 2.0, "rope_dims": 4, "xsa_layers": 1}
    loop = {"loop_start": 1, "loop_end": 1, "loop_runs": 2, "parallel_from": 2}
    model = GPT(ModelConfig(**{**shape, **loop, **changes}), VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny()


def settings(ttt: str = "none", documents: bool = False, **chunk) -> EvaluateConfig:
    chosen = ChunkTTTConfig(**{"chunk_tokens": 56, "lr": 0.05, "epochs": 1, "rows_per_step": 3, **chunk})
    return EvaluateConfig(
        seq_len=16, stride=8, batch_tokens=64, isolate_documents=documents, ttt=ttt, chunk=chosen  # type: ignore[arg-type]
    )  # fmt: skip


def scorer(model: GPT, config: EvaluateConfig) -> probes.Score:
    return lambda tokens: evaluate(model, tokens, np.ones(len(tokens), np.int64), config).losses


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("ttt", ["none", "chunk"])
def test_our_evaluation_sees_no_later_token(model: GPT, ttt: str, documents: bool) -> None:
    found = probes.future_tokens(scorer(model, settings(ttt, documents)), STREAM, VOCAB, POSITIONS)
    assert found.verdict == "pass", found


def tilted(model: GPT) -> probes.Score:
    """A hint about the token after the target."""
    honest = scorer(model, settings())

    def score(tokens):
        losses = honest(tokens)
        losses[:-1] -= 0.1 * (tokens[2:] == tokens[1:-1])
        losses[:-1] -= 0.05 * (tokens[2:] % 2)
        return losses

    return score


def trained_first(model: GPT) -> probes.Score:
    """Adaptation over the whole stream, then the score with the weights that came out."""

    def score(tokens):
        learned = tiny()
        learned.load_state_dict(model.state_dict())
        optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        learned.prepare(ids.size(1))
        learned.losses(ids[:, :-1], ids[:, 1:]).mean().backward()
        optimizer.step()
        return scorer(learned, settings())(tokens)

    return score


def later_pass(model: GPT) -> probes.Score:
    """Two passes: the second one's losses, after adaptation on the first."""

    def score(tokens):
        both = np.concatenate([tokens, tokens[1:]])
        return scorer(model, settings("chunk", lr=0.3))(both)[-(len(tokens) - 1) :]

    return score


def whole_stream_statistic(model: GPT) -> probes.Score:
    """A unigram prior from all tokens, later ones included."""
    honest = scorer(model, settings())

    def score(tokens):
        prior = np.bincount(tokens, minlength=VOCAB) / len(tokens)
        return (0.9 * honest(tokens) - 0.1 * np.log(prior[tokens[1:]])).astype(np.float32)

    return score


@pytest.mark.parametrize("cheat", [tilted, trained_first, later_pass, whole_stream_statistic])
def test_a_score_that_sees_later_tokens_is_found(model: GPT, cheat) -> None:
    found = probes.future_tokens(cheat(model), STREAM, VOCAB, POSITIONS)
    assert found.verdict == "fail", found
    assert found.check == "c1.future_tokens"


def test_losses_that_are_no_numbers_do_not_pass(model: GPT) -> None:
    honest, calls = scorer(model, settings()), []

    def score(tokens):
        calls.append(tokens)
        return honest(tokens) if len(calls) == 1 else honest(tokens) * np.nan

    assert probes.future_tokens(score, STREAM, VOCAB, [50]).verdict == "fail"


FORMS = [
    {}, {"smear": "window"}, {"smear": "vector"}, {"layers": 3, "parallel": "lanes"}, {"skips": "plain"},
    {"value_residual": "learned"}, {"attn_gate": "sparse"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_form_of_the_model_has_a_gradient_to_later_tokens(form: dict) -> None:
    model = tiny(**form)
    assert probes.gradients(model, STREAM[:33], [0, 7, 20, 30]).verdict == "pass"
    assert "embed" not in vars(model), "the probe left its replacement behind"


def test_a_model_that_looks_ahead_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda self, ids, s=None: (h := honest(self, ids, s)) + 0.01 * h.mean(1, True))
    found = probes.gradients(tiny(), STREAM[:33], [0, 7, 20])
    assert found.verdict == "fail"


def test_a_gradient_probe_that_reaches_nothing_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT, "hidden", lambda self, ids, s=None: 0 * self.embed(ids))
    assert probes.gradients(tiny(), STREAM[:33], [0, 7]).verdict == "cannot tell"


def cache(model: GPT) -> probes.Answer:
    """A hashed cache that adds probability to what was seen, without taking it from the rest."""

    def losses(inputs, targets):
        pairs = zip(inputs, targets, strict=True)
        seen = np.array([[t in row[: j + 1] for j, t in enumerate(asked)] for row, asked in pairs])
        return (answer(model, inputs, targets) - 0.3 * seen).astype(np.float32)

    return losses


def best_of_two(model: GPT) -> probes.Answer:
    other = tiny(skips="plain")
    return lambda inputs, targets: np.minimum(answer(model, inputs, targets), answer(other, inputs, targets))


def spread_over_bytes(model: GPT) -> probes.Answer:
    """A mixture in which each token's loss is halved, as by a wrong geometric mean over its bytes."""
    return lambda inputs, targets: answer(model, inputs, targets) * 0.5


def by_target(model: GPT) -> probes.Answer:
    """A temperature that asks what the target is."""
    return lambda inputs, targets: answer(model, inputs, targets) * np.where(targets % 2, 0.9, 1.1).astype(np.float32)


def test_our_losses_are_a_distribution(model: GPT) -> None:
    found = probes.distribution(lambda i, t: answer(model, i, t), CONTEXTS, VOCAB, rows=7)
    assert found.verdict == "pass"
    assert f"at {sum(map(len, CONTEXTS))} positions" in found.evidence


@pytest.mark.parametrize("cheat", [cache, best_of_two, spread_over_bytes, by_target])
def test_losses_that_are_no_distribution_are_found(model: GPT, cheat) -> None:
    assert probes.distribution(cheat(model), CONTEXTS, VOCAB).verdict == "fail"


def test_a_negative_loss_fails_even_where_the_sum_is_one(model: GPT) -> None:
    def losses(inputs, targets):
        found = np.full(inputs.shape, 50.0, np.float32)
        found[targets == 3] = -0.5  # more than certain
        return found

    assert probes.distribution(losses, CONTEXTS, VOCAB).verdict == "fail"


def test_the_charged_loss_is_compared_with_p(model: GPT) -> None:
    losses = scorer(model, settings())(STREAM)[:15]
    mine = lambda rows: charge(model, rows)  # noqa: E731
    assert probes.charged(mine, STREAM[:16], losses, comparable=True).verdict == "pass"
    assert probes.charged(mine, STREAM[:16], losses - 0.01, comparable=True).verdict == "fail"
    assert probes.charged(mine, STREAM[:16], losses - 0.01, comparable=False).verdict == "pass"
    assert probes.charged(mine, STREAM[:16], losses - 0.2, comparable=False).verdict == "cannot tell"


def test_our_interval_log_is_in_order(model: GPT) -> None:
    updates = evaluate(model, STREAM, np.ones(len(STREAM), np.int64), settings("chunk")).updates
    assert updates
    assert probes.intervals(np.array(updates), len(STREAM) - 1).verdict == "pass"


@pytest.mark.parametrize(
    "rows",
    [
        [[40, 0, 41, 1]],
        [[0, 0, 40, 3], [40, 40, 80, 3]],
        [[80, 40, 80, 1], [40, 0, 40, 1]],
        [[40, 20, 20, 1]],
        [[999, 0, 40, 1]],
    ],
    ids=["one ahead", "train first", "back", "empty", "more than there are"],
)
def test_an_update_ahead_of_the_score_is_found(rows: list[list[int]]) -> None:
    assert probes.intervals(np.array(rows), 170).verdict == "fail"


def test_adaptation_at_a_rate_of_zero_changes_nothing(model: GPT) -> None:
    plain = scorer(model, settings())(STREAM)
    assert probes.zero_rate(scorer(model, settings("chunk", lr=0.0))(STREAM), plain).verdict == "pass"
    assert probes.zero_rate(scorer(model, settings("chunk", lr=0.01))(STREAM), plain).verdict == "fail"


def repeated_tail(total: int, length: int, stride: int) -> Windows:
    """PR 401: windows start while a token remains, and score their last `stride` targets."""
    start = np.arange(0, total, stride)
    end = np.minimum(start + length, total)
    return Windows(start, end, np.where(start == 0, 0, np.maximum(end - stride, 0)))


def dropped_tail(total: int, length: int, stride: int) -> Windows:
    right = plan_windows(total, length, stride)
    whole = right.end - right.start == length
    return Windows(*(column[whole] for column in right))


def test_every_target_is_counted() -> None:
    losses = np.ones(170, np.float32)
    assert probes.score_counts(plan_windows(170, 16, 4), 170, losses).verdict == "pass"
    assert "scored again" in probes.score_counts(repeated_tail(170, 16, 4), 170, losses).evidence
    assert "never scored" in probes.score_counts(dropped_tail(170, 16, 4), 170, losses).evidence
    beyond = plan_windows(171, 16, 4)
    for windows, found in (
        (repeated_tail(170, 16, 4), losses), (dropped_tail(170, 16, 4), losses), (beyond, losses),
        (plan_windows(170, 16, 4), losses[1:]), (plan_windows(170, 16, 4), losses * np.nan),
    ):  # fmt: skip
        assert probes.score_counts(windows, 170, found).verdict == "fail"


@pytest.mark.parametrize("smear", ["window", "vector"])
def test_smear_without_its_mask_crosses_documents(smear: str) -> None:
    first, second = STREAM[:12], STREAM[37:60]
    for mask, verdict in ((True, "pass"), (False, "fail")):
        model = tiny(smear=smear, smear_mask=mask)
        found = probes.document_boundary(lambda both, m=model: packed(m, both), first, second, VOCAB)
        assert found.verdict == verdict


@pytest.mark.parametrize("ttt", ["none", "chunk"])
def test_all_probes_on_a_run(model: GPT, ttt: str) -> None:
    config = EvaluateConfig(seq_len=32, stride=8, ttt=ttt, chunk=ChunkTTTConfig(chunk_tokens=64, lr=0.01))  # type: ignore[arg-type]
    result = evaluate(model, STREAM, np.ones(len(STREAM), np.int64), config)
    updates = np.array(result.updates, dtype=np.int32).reshape(-1, 4)
    found = probe_model(model, STREAM, config, VOCAB)
    found += probe_scores(model, STREAM, config, result.losses, updates, comparable=True)
    assert {f.verdict for f in found} == {"pass"}, found
    checks = {f.check for f in found}
    assert checks >= {"c1.future_tokens", "c1.gradients", "c2.distribution", "c2.charged", "c3.intervals",
                      "c4.score_counts", "e3.boundary"}  # fmt: skip
    assert ("c3.zero_rate" in checks) == (ttt == "chunk")


def test_adaptation_without_its_log_is_left_open(model: GPT) -> None:
    losses, none = scorer(model, settings())(STREAM), np.empty((0, 4), np.int32)
    for ttt, verdict in (("none", "pass"), ("chunk", "cannot tell")):
        found = probe_scores(model, STREAM, settings(ttt), losses, none, comparable=True)
        assert {f.check: f.verdict for f in found}["c3.intervals"] == verdict


def test_the_scaled_evaluation_keeps_its_kind() -> None:
    config = EvaluateConfig(seq_len=2048, stride=64, ttt="chunk", isolate_documents=True)
    small = scaled(config)
    assert (small.seq_len, small.stride, small.chunk.chunk_tokens) == (64, 2, 128)
    assert (small.ttt, small.isolate_documents) == ("chunk", True)
    assert scaled(dataclasses.replace(config, stride=2048)).stride == 64
