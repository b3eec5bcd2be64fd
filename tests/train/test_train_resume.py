"""A run that was interrupted and resumed is the run that was not."""

import dataclasses

import pytest
import torch
from token_shards import token_shards

from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.config import TrainConfig
from pgolf.train.loop import Trainer, train
from pgolf.train.recorder import Snapshot
from pgolf.train.run import run_training

VOCAB, LENGTH, STEPS = 64, 8, 7
MODEL = ModelConfig(
    layers=2, dim=32, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=0, loop_end=0, loop_runs=2,
    parallel_from=1, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=STEPS, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=4 * LENGTH, trace_every=2,
    ema=0.7, loop_at=0.4, checkpoint_seconds=1.0,
)  # fmt: skip
BY_CLOCK = dataclasses.replace(CONFIG, steps=None, seconds=16.0, reserve_seconds=2.0)  # 14 s: 7 steps of 2 s
IDENTITY = {"model": "tiny", "seed": 42}


class Interrupted(Exception):
    pass


def trainer(config):
    torch.manual_seed(3)
    model = GPT(MODEL, VOCAB)
    model.prepare(LENGTH)
    return Trainer(model, config)


class Feed:
    """Batches as a function of their number, each of which takes a second of a fake clock."""

    def __init__(self, skip=0, seconds=0.0):
        self.n, self.seconds = skip, seconds

    def __iter__(self):
        return self

    def __next__(self):
        window = torch.randint(VOCAB, (2, LENGTH + 1), generator=torch.Generator().manual_seed(self.n))
        self.n += 1
        self.seconds += 1
        return Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)

    def elapsed(self):
        return self.seconds


def finish(config, resume=None, save=None):
    """Run to the end: (trained, everything the trainer holds, the batches)."""
    t = trainer(config)
    feed = Feed(resume.step * config.micro_batches, resume.seconds) if resume else Feed()
    done = train(t, feed, feed.elapsed, resume=resume, save=save)
    return done, {name: tensor.clone() for name, tensor in t.state().items()}, feed


def interrupt(config, at, checkpoints):
    """Run until the state of step `at` is on disk, then die."""

    def save(snapshot):
        checkpoints.save(snapshot)
        if snapshot.step == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        finish(config, save=save)


@pytest.mark.parametrize("config", [CONFIG, BY_CLOCK], ids=["steps", "seconds"])
def test_resuming_from_any_checkpoint_ends_bit_identical(tmp_path, config):
    expected, state, feed = finish(config)
    assert expected.steps == STEPS
    for at in range(1, STEPS) if config is CONFIG else (1, 3, 6):
        checkpoints = Checkpoints(tmp_path / str(at), IDENTITY)
        interrupt(config, at, checkpoints)
        resume = checkpoints.load()
        assert (resume.step, resume.seconds) == (at, 2.0 * at)
        done, resumed, fed = finish(config, resume)
        assert resumed.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(resumed[name], tensor), (at, name)
        assert (done.steps, done.seconds, done.loss) == (expected.steps, expected.seconds, expected.loss)
        assert done.trace.keys() == expected.trace.keys()
        for name, series in expected.trace.items():
            assert series.dtype == done.trace[name].dtype
            assert torch.equal(done.trace[name], series), (at, name)
        assert fed.n == feed.n


def test_a_run_may_be_interrupted_twice(tmp_path):
    _, state, _ = finish(CONFIG)
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    interrupt(CONFIG, 2, checkpoints)

    def save(snapshot):
        checkpoints.save(snapshot)
        if snapshot.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        finish(CONFIG, checkpoints.load(), save)
    resume = checkpoints.load()
    assert resume.step == 5
    _, resumed, _ = finish(CONFIG, resume)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in state.items())


def test_saving_does_not_change_the_run(tmp_path):
    _, plain, _ = finish(CONFIG)
    _, saved, _ = finish(CONFIG, save=Checkpoints(tmp_path, IDENTITY).save)
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.items())


@pytest.mark.parametrize(("every", "steps"), [(1.0, [1, 2, 3, 4, 5, 6]), (5.0, [3, 6]), (0.0, []), (99.0, [])])
def test_saves_at_the_interval_of_the_clock(every, steps):
    saved = []
    finish(dataclasses.replace(CONFIG, checkpoint_seconds=every), save=lambda snapshot: saved.append(snapshot.step))
    assert saved == steps  # a step takes 2 s


def test_a_resumed_clock_past_the_budget_ends_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    interrupt(BY_CLOCK, 4, checkpoints)
    late = checkpoints.load()._replace(seconds=14.0)
    done, state, feed = finish(BY_CLOCK, late)
    assert (done.steps, done.seconds) == (4, 14.0)
    assert feed.n == 8  # no batch was taken
    for name, tensor in late.tensors.items():
        if name.startswith("ema."):
            assert torch.equal(state[name.replace("ema.", "model.", 1)], tensor)


@pytest.mark.parametrize("batches", ["rows", "packed"])
def test_run_training_resumes_with_its_loader(tmp_path, batches):
    """From shards to weights: the loader is fast-forwarded and the clock goes on."""
    config = dataclasses.replace(CONFIG, batches=batches, checkpoint_seconds=1e-9)
    common = (MODEL, config, VOCAB, token_shards(tmp_path, VOCAB, 400, 400), torch.device("cpu"), torch.float32)
    whole = run_training(*common)
    assert whole.trained.steps == STEPS
    assert whole.trained.seconds > 0
    checkpoints = Checkpoints(tmp_path / "scratch", IDENTITY)

    def save(snapshot):
        checkpoints.save(snapshot)
        if snapshot.step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_training(*common, save=save)
    resume = checkpoints.load()._replace(seconds=1000.0)
    again = run_training(*common, resume=resume)
    assert again.trained.steps == STEPS
    assert again.trained.seconds > 1000
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert again.model.looped
    assert torch.equal(again.trained.trace["loss"], whole.trained.trace["loss"])


def test_run_training_depends_on_the_seed_alone(tmp_path):
    files = token_shards(tmp_path, VOCAB, 400, 400)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed + len(results))  # what the process drew before must not matter
        torch.rand(len(results))
        config = dataclasses.replace(CONFIG, seed=seed, steps=2)
        run = run_training(MODEL, config, VOCAB, files, torch.device("cpu"), torch.float32)
        results.append(run.model.tok_emb.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def snapshot():
    return Snapshot(3, 4.5, {"model.w": torch.arange(6.0).view(2, 3), "adam.w.step": torch.tensor(3.0)})


def test_checkpoints_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    assert checkpoints.load() is None
    checkpoints.save(snapshot())
    loaded = checkpoints.load()
    assert (loaded.step, loaded.seconds) == (3, 4.5)
    assert loaded.tensors.keys() == snapshot().tensors.keys()
    for name, tensor in snapshot().tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)
        assert loaded.tensors[name].shape == tensor.shape
    checkpoints.save(snapshot()._replace(step=9))
    assert checkpoints.load().step == 9
    assert [path.name for path in checkpoints.folder.iterdir()] == ["state.safetensors"]


def test_checkpoints_of_other_runs_do_not_mix(tmp_path):
    mine, other = Checkpoints(tmp_path, IDENTITY), Checkpoints(tmp_path, IDENTITY | {"seed": 43})
    mine.save(snapshot())
    assert other.load() is None
    other.save(snapshot()._replace(step=8))
    assert (mine.load().step, other.load().step) == (3, 8)
    same = Checkpoints(tmp_path, dict(reversed(IDENTITY.items())))  # the order of the keys is no identity
    assert same.load().step == 3
    other.clear()
    assert other.load() is None
    assert mine.load().step == 3
    other.clear()  # twice is harmless


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "another schema"])
def test_a_damaged_state_is_refused_by_name(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(snapshot())
    data = checkpoints.path.read_bytes()
    broken = {
        "truncated": data[:-4],
        "empty": b"",
        "text": b"not a state at all, only some text",
        "another schema": data.replace(b"pgolf.resume", b"pgolf.resumo"),
    }
    checkpoints.path.write_bytes(broken[damage])
    with pytest.raises(InputError, match="cannot resume") as error:
        checkpoints.load()
    assert str(checkpoints.folder) in str(error.value)
    assert "delete" in str(error.value)


def test_an_interrupted_save_keeps_the_last_state(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save(snapshot())
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(snapshot()._replace(step=9))
    assert checkpoints.load().step == 3
    assert [path.name for path in checkpoints.folder.iterdir()] == ["state.safetensors"]
