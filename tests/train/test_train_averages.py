"""Snapshots, candidates and the choice among them, against the recorded history of a run."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from pgolf.data.batches import Batch
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.averaging import EMA
from pgolf.train.choose import choose
from pgolf.train.config import SnapshotConfig, TrainConfig
from pgolf.train.loop import train
from pgolf.train.recorder import Snapshot
from pgolf.train.snapshots import LastMean, RunningMean
from pgolf.train.trainer import Trainer

VOCAB, LENGTH, STEPS = 32, 8, 12
MODEL = ModelConfig(
    layers=1, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=0, loop_end=0, loop_runs=1,
    parallel_from=None, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=STEPS, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=2 * LENGTH, ema=0.6, warmdown=0.8,
    snapshots=SnapshotConfig(every=2, below=0.6, last=3), checkpoint_seconds=1.0, trace_every=3,
)  # fmt: skip


def stream(start=0):
    for n in itertools.count(start):
        window = torch.randint(VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(n))
        yield Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)


def trainer(**changes):
    torch.manual_seed(0)
    model = GPT(MODEL, VOCAB)
    model.prepare(LENGTH)
    return Trainer(model, dataclasses.replace(CONFIG, **changes))


def run(monkeypatch, **changes):
    """(trainer, flat live weights and EMA after every step, multipliers)."""
    t, live, ema, rates = trainer(**changes), [], [], []
    snapshot = t.snapshot

    def record(step, now):
        live.append(flat(t.average.live))
        ema.append(flat(t.average.average))
        rates.append(now.multiplier)
        snapshot(step, now)

    monkeypatch.setattr(t, "snapshot", record)
    train(t, stream(), lambda: 0.0)
    return t, live, ema, rates


def flat(tensors):
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def weights(model):
    return flat(model.parameters())


def test_running_and_last_mean_are_means():
    source = [torch.zeros(3), torch.zeros(2, 2)]
    running, last = RunningMean(source, "ab"), LastMean(source, "ab", 4)
    history = []
    for n in range(9):
        torch.manual_seed(n)
        for tensor in source:
            tensor.copy_(torch.randn_like(tensor))
        history.append([tensor.clone() for tensor in source])
        running.take()
        last.take()
        for index in range(2):
            taken = torch.stack([tensors[index] for tensors in history])
            torch.testing.assert_close(running.average[index], taken.mean(0))
            torch.testing.assert_close(last.average[index], taken[-4:].mean(0))
    assert int(running.count) == int(last.count) == 9


@pytest.mark.parametrize("kind", ["swa", "tight_swa", "lawa", "live", "ema"])
def test_the_model_is_the_average_that_is_named(monkeypatch, kind):
    t, live, ema, rates = run(monkeypatch, average=kind)
    low = [step for step in range(STEPS) if (step + 1) % 2 == 0 and rates[step] < 0.6]
    assert low == [7, 9, 11]  # (1 - 7/12) / .8 = .52
    expected = {
        "swa": torch.stack([live[step] for step in low]).mean(0),
        "tight_swa": torch.stack([ema[step] for step in low]).mean(0),
        "lawa": torch.stack([live[step] for step in (7, 9, 11)]).mean(0),
        "live": live[-1],
        "ema": ema[-1],
    }
    for name, value in expected.items():
        close = torch.allclose(weights(t.model), value, rtol=1e-5, atol=1e-6)
        assert close == (name == kind or {name, kind} == {"swa", "lawa"}), name


@pytest.mark.parametrize(("kind", "every"), [("tight_swa", 12), ("tight_swa", 99), ("swa", 99), ("lawa", 99)])
def test_too_few_snapshots_leave_what_they_would_be_taken_of(monkeypatch, kind, every):
    """PR 401: the mean of EMA snapshots if there is more than one, else the EMA."""
    t, live, ema, _ = run(monkeypatch, average=kind, snapshots=SnapshotConfig(every=every, below=0.6))
    torch.testing.assert_close(weights(t.model), ema[-1] if kind == "tight_swa" else live[-1])


def test_candidates_are_the_averages_of_runs_with_that_decay():
    t = trainer(ema_candidates=(0.5, 0.9, 0.99))
    done = train(t, stream(), lambda: 0.0)
    found = t.candidate_averages()
    names = [name for name, _ in t.model.named_parameters()]
    assert list(found) == [f"{decay}/{name}" for decay in (0.5, 0.9, 0.99) for name in names]
    for decay in (0.5, 0.99):
        other = trainer(ema=decay)
        assert train(other, stream(), lambda: 0.0).loss == done.loss  # averaging does not change the run
        for name, parameter in other.model.named_parameters():
            assert torch.equal(found[f"{decay}/{name}"], parameter.data)
    assert trainer().candidate_averages() == {}


def test_choose_takes_the_lowest_loss_and_keeps_the_weights():
    t = trainer(ema_candidates=(0.1, 0.9), choose_batches=2)
    before = weights(t.model)
    choices = []
    for noise in (2.0, 0.0, 1.0):
        torch.manual_seed(5)
        choices.append([tensor + noise * torch.randn_like(tensor) for tensor in t.average.average])
    final, t.candidates["0.1"].average, t.candidates["0.9"].average = choices
    batches = stream(50)
    taken = [next(batches) for _ in range(2)]
    losses = []
    for tensors in choices:
        other = trainer()
        other.put(tensors)
        with torch.no_grad():
            losses.append(sum(other.model.losses(b.inputs, b.targets).mean().item() for b in taken))
    best = choose(t, final, stream(50))
    assert best is choices[losses.index(min(losses))]
    assert len(set(losses)) == 3
    assert torch.equal(weights(t.model), before)


def test_the_choice_is_made_on_the_batches_after_the_last_step(monkeypatch):
    taken = []

    def chosen(trainer, final, batches):
        taken.append((final, [next(batches) for _ in range(3)]))
        return trainer.candidates["0.1"].average

    monkeypatch.setattr("pgolf.train.choose.choose", chosen)
    t = trainer(ema_candidates=(0.1, 0.9), choose_batches=3)
    train(t, stream(), lambda: 0.0)
    assert torch.equal(weights(t.model), flat(t.candidates["0.1"].average))
    ((final, batches),) = taken
    assert final is t.average.average
    for batch, expected in zip(batches, stream(STEPS), strict=False):
        assert torch.equal(batch.inputs, expected.inputs)


@pytest.mark.parametrize("kind", ["swa", "tight_swa", "lawa"])
def test_a_resumed_run_has_the_same_averages(kind):
    def clock(n):
        return lambda: float(n[0])

    class Stop(Exception):
        pass

    saved = []

    def keep(snapshot):
        saved.append(snapshot._replace(tensors={name: t.clone() for name, t in snapshot.tensors.items()}))
        if snapshot.step == 9:
            raise Stop

    def feed(ticks, start=0):
        for batch in stream(start):
            ticks[0] += 1
            yield batch

    results, changes = [], {"average": kind, "ema_candidates": (0.9,)}
    for mode in ("whole", "interrupted", "resumed"):
        t, ticks = trainer(**changes), [0]
        if mode == "interrupted":
            with pytest.raises(Stop):
                train(t, feed(ticks), clock(ticks), save=keep)
            continue
        resume: Snapshot | None = saved[-1] if mode == "resumed" else None
        train(t, feed(ticks, resume.step if resume else 0), clock(ticks), resume=resume)
        results.append(t.state())
    whole, resumed = results
    assert {"snapshots.count", "ema@0.9.tok_emb.weight"} <= whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_an_average_of_bfloat16_weights_is_float32():
    layer = nn.Linear(2, 2, bias=False).bfloat16()
    ema = EMA(layer, 0.5)
    first = layer.weight.detach().float().clone()
    layer.weight.data.fill_(1.0)
    ema.update()
    torch.testing.assert_close(ema.average[0], (first + 1) / 2)
