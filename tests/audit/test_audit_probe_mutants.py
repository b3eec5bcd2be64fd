"""Every probe has a cheat that only it finds, and test-time training by documents is probed in its own order."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pgolf.audit import ours, probes
from pgolf.audit.ours import probe_model, probe_scores, scaled, scoring_order
from pgolf.evaluate import neural_cache, shared_ttt
from pgolf.evaluate.config import CacheConfig, ChunkTTTConfig, EvaluateConfig, LoRAConfig, PhasesConfig
from pgolf.evaluate.documents import Documents, find_documents
from pgolf.evaluate.run import Evaluation, evaluate
from pgolf.evaluate.windows import Windows
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB, LENGTH = 24, 32
SHAPE = {
    "layers": 2, "dim": 16, "heads": 2, "kv_heads": 1, "mlp_mult": 2.0, "rope_dims": 4, "xsa_layers": 1,
    "loop_runs": 1, "loop_start": 1, "loop_end": 1, "parallel_from": 2, "smear": "window",
}  # fmt: skip
CHUNK = EvaluateConfig(
    seq_len=LENGTH, stride=16, batch_tokens=128, ttt="chunk", chunk=ChunkTTTConfig(chunk_tokens=64, lr=0.05)
)
BY_DOCUMENT = {
    name: EvaluateConfig(
        seq_len=LENGTH, stride=16, batch_tokens=128, isolate_documents=True, ttt=name,  # type: ignore[arg-type]
        chunk=ChunkTTTConfig(chunk_tokens=LENGTH, lr=0.05, epochs=1),
        lora=LoRAConfig(rank=2, lr=0.01, chunk_tokens=8, documents=3),
        phases=PhasesConfig(prefix_documents=6, count=2, ranks=1),
    )
    for name in ("lora", "phased")
}  # fmt: skip


CACHE = CacheConfig(sharpness=9.0, gate=0.7, bias=-0.5)
TUNED = {
    name: dataclasses.replace(BY_DOCUMENT["lora"], ttt=name, cache=CACHE, temperature=1.2)  # type: ignore[arg-type]
    for name in ("none", "lora", "cached")
}


def stream(lengths: list[int], seed: int = 0) -> np.ndarray:
    """Documents of random tokens, each with its BOS."""
    tokens = np.random.default_rng(seed).integers(2, VOCAB, sum(lengths)).astype(np.uint16)
    tokens[np.cumsum([0, *lengths[:-1]])] = 1
    return tokens


STREAM = stream([23] * 9)
DOCUMENTS = stream([41, 15, 37, 26, 9, 32, 40, 22, 14, 35, 5, 29])


def tiny(**changes: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**SHAPE, **changes}), VOCAB)  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@dataclasses.dataclass
class Run:
    """What a run leaves behind; a cheat changes it, or the code under it."""

    model: GPT
    losses: np.ndarray
    updates: np.ndarray


Cheat = Callable[[Run, pytest.MonkeyPatch], None]


def later_chunks(change: Callable[[GPT, np.ndarray, EvaluateConfig, np.ndarray], np.ndarray]) -> Cheat:
    """An evaluation whose losses behind the first chunk are others."""

    def apply(run: Run, patch: pytest.MonkeyPatch) -> None:
        def cheat(model: GPT, tokens: np.ndarray, counts: np.ndarray, config: EvaluateConfig) -> Evaluation:
            found = evaluate(model, tokens, counts, config)
            if config.ttt == "none":
                return found
            first = config.chunk.chunk_tokens
            losses = np.concatenate([found.losses[:first], change(model, tokens, config, found.losses)[first:]])
            return found._replace(losses=losses)

        patch.setattr(ours, "evaluate", cheat)

    return apply


def trained_first(model: GPT, tokens: np.ndarray, config: EvaluateConfig, losses: np.ndarray) -> np.ndarray:
    """One step at the run's rate on the whole stream, then the score."""
    learned = tiny()
    learned.load_state_dict(model.state_dict())
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    learned.prepare(ids.size(1))
    learned.losses(ids[:, :-1], ids[:, 1:]).mean().backward()
    torch.optim.SGD(learned.parameters(), lr=config.chunk.lr).step()
    return evaluate(learned, tokens, np.ones(len(tokens), np.int64), config).losses


def decayed(model: GPT, tokens: np.ndarray, config: EvaluateConfig, losses: np.ndarray) -> np.ndarray:
    """Something between the chunks that has no rate."""
    return losses * np.float32(0.99)


def faint_look_ahead(run: Run, patch: pytest.MonkeyPatch) -> None:
    """Too weak to move a loss by the tolerance."""
    honest = GPT.hidden

    def hidden(self: GPT, *args: object, **named: object) -> torch.Tensor:
        found = honest(self, *args, **named)  # type: ignore[arg-type]
        return found + 1e-7 * found.mean(1, keepdim=True)

    patch.setattr(GPT, "hidden", hidden)


def unnormalised(run: Run, patch: pytest.MonkeyPatch) -> None:
    """A tenth of each token's loss is forgiven, whichever the token."""
    honest = GPT.surprise
    patch.setattr(GPT, "surprise", lambda self, *args, **named: 0.9 * honest(self, *args, **named))
    run.losses = 0.9 * run.losses  # about what a run of it leaves behind: its first losses are exact


def edited(run: Run, patch: pytest.MonkeyPatch) -> None:
    run.losses = run.losses - np.float32(0.05)


def ahead(run: Run, patch: pytest.MonkeyPatch) -> None:
    run.updates = run.updates + np.array([0, 0, 1, 0])
    run.updates[:, 2] = run.updates[:, 0] + 1


def repeated_tail(run: Run, patch: pytest.MonkeyPatch) -> None:
    honest = ours.windows_for

    def windows(tokens: np.ndarray, config: EvaluateConfig, stride: int) -> Windows:
        plan = honest(tokens, config, stride)
        return plan._replace(first=np.append(plan.first[:-1], plan.first[-1] - stride // 2))

    patch.setattr(ours, "windows_for", windows)


def unmasked(run: Run, patch: pytest.MonkeyPatch) -> None:
    """The smear gate of before PR 1851; here, windows cross documents anyway."""
    state = run.model.state_dict()
    run.model = tiny(smear_mask=False)
    run.model.load_state_dict(state)
    found = evaluate(run.model, STREAM, np.ones(len(STREAM), np.int64), CHUNK)
    run.losses = found.losses


CHEATS: dict[str, Cheat] = {
    "c1.future_tokens": later_chunks(trained_first),
    "c1.gradients": faint_look_ahead,
    "c2.distribution": unnormalised,
    "c2.charged": edited,
    "c3.intervals": ahead,
    "c3.zero_rate": later_chunks(decayed),
    "c4.score_counts": repeated_tail,
    "e3.boundary": unmasked,
}


def judged(run: Run) -> dict[str, str]:
    found = probe_model(run.model, STREAM, CHUNK, VOCAB)
    found += probe_scores(run.model, STREAM, CHUNK, run.losses, run.updates, comparable=True)
    return {finding.check: finding.verdict for finding in found}


@pytest.fixture
def run() -> Run:
    model = tiny()
    found = evaluate(model, STREAM, np.ones(len(STREAM), np.int64), CHUNK)
    return Run(model, found.losses, np.array(found.updates))


def test_an_honest_run_passes_every_probe(run: Run) -> None:
    assert judged(run) == dict.fromkeys(CHEATS, "pass")


@pytest.mark.parametrize("check", CHEATS)
def test_a_cheat_is_found_by_its_probe_and_by_no_other(check: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    CHEATS[check](run, monkeypatch)
    assert {name for name, verdict in judged(run).items() if verdict != "pass"} == {check}


def ones(tokens: np.ndarray) -> np.ndarray:
    return np.ones(len(tokens), np.int64)


@pytest.mark.parametrize("name", BY_DOCUMENT)
def test_adaptation_by_documents_passes_every_probe(name: str) -> None:
    model, config = tiny(), BY_DOCUMENT[name]
    found = evaluate(model, DOCUMENTS, ones(DOCUMENTS), config)
    findings = probe_model(model, DOCUMENTS, config, VOCAB)
    findings += probe_scores(model, DOCUMENTS, config, found.losses, np.array(found.updates), comparable=True)
    assert {finding.check: finding.verdict for finding in findings} == dict.fromkeys(CHEATS, "pass"), findings


def probed(config: EvaluateConfig) -> dict[str, str]:
    """Verdicts on a stream that begins with a document shorter than the windows of the probes."""
    model, tokens = tiny(), DOCUMENTS[41:]
    found = evaluate(model, tokens, ones(tokens), config)
    findings = probe_model(model, tokens, config, VOCAB)
    findings += probe_scores(model, tokens, config, found.losses, np.array(found.updates).reshape(-1, 4), True)
    return {finding.check: finding.verdict for finding in findings}


@pytest.mark.parametrize("name", TUNED)
def test_a_cache_and_a_temperature_pass_every_probe(name: str) -> None:
    found = probed(TUNED[name])
    assert found == dict.fromkeys(CHEATS if name != "none" else set(CHEATS) - {"c3.zero_rate"}, "pass")


def test_a_cache_that_holds_its_own_target_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = neural_cache.look_up

    def cheat(states: torch.Tensor, targets: torch.Tensor, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
        total, cached = (pair.exp() for pair in honest(states, targets, sharpness))
        return (total + 1).log(), ((total * cached + 1) / (total + 1)).log()

    monkeypatch.setattr(neural_cache, "look_up", cheat)
    monkeypatch.setattr(ours, "look_up", cheat)
    found = probed(TUNED["none"])
    assert {name for name, verdict in found.items() if verdict != "pass"} == {"c2.distribution"}


def test_the_order_is_that_of_the_queue_and_not_of_the_stream() -> None:
    small = scaled(BY_DOCUMENT["phased"])
    order = scoring_order(DOCUMENTS, small)
    assert order is not None
    assert sorted(order.tolist()) == list(range(len(DOCUMENTS) - 1))
    longest, second = (find_documents(DOCUMENTS, 1).start[index] for index in (0, 6))
    assert sorted(order[[longest, second]].tolist()) == [0, 1]  # a batch of two, the longest documents first
    assert scoring_order(DOCUMENTS, CHUNK) is None
    model = tiny()

    def score(tokens: np.ndarray) -> np.ndarray:
        return evaluate(model, tokens, ones(tokens), small).losses

    cuts = [20, 75, 200]
    assert probes.future_tokens(score, DOCUMENTS, VOCAB, cuts, order).verdict == "pass"
    backwards = np.argsort(np.argsort(-order))
    assert probes.future_tokens(score, DOCUMENTS, VOCAB, cuts, backwards).verdict == "fail"


def test_shared_weights_that_learn_from_unscored_documents_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = shared_ttt.learn_shared

    def learn_all(model: GPT, tokens: np.ndarray, scored: Documents, config: EvaluateConfig) -> int:
        return honest(model, tokens, find_documents(tokens, 1), config)

    monkeypatch.setattr(shared_ttt, "learn_shared", learn_all)
    found = probe_model(tiny(), DOCUMENTS, BY_DOCUMENT["phased"], VOCAB)
    assert {finding.check for finding in found if finding.verdict == "fail"} == {"c1.future_tokens"}
