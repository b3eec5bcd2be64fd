"""Two and four processes train what one trains: the same weights up to the order of sums."""

import dataclasses
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from token_shards import token_shards

from pgolf import ranks
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.train import muon
from pgolf.train import run as run_module
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.config import CurriculumConfig, FinishConfig, LateConfig, MuonConfig, TrainConfig
from pgolf.train.loop import train
from pgolf.train.run import build_model, open_batches, run_training
from pgolf.train.schedule import largest_world
from pgolf.train.trainer import Trainer

VOCAB, LENGTH, STEPS, CPU = 4160, 8, 4, torch.device("cpu")  # the embedding is too large for the common buffer
MODEL = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=1, loop_end=1, loop_runs=2,
    parallel_from=2, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=STEPS, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=8 * LENGTH, trace_every=1,
    ema=0.7, loop_at=0.5, checkpoint_seconds=1e-9, grad_clip=0.05, late=LateConfig(layer=2, muon=1.5),
)  # fmt: skip
CONFIGS = {
    "global": CONFIG,
    "local": dataclasses.replace(CONFIG, clip="local", batches="packed"),
    "mousse": dataclasses.replace(
        CONFIG, clip="local", muon=MuonConfig(mousse=True, row_norm=False), ema_candidates=(0.1,), choose_batches=3
    ),
}
WORLDS = (2, 4)


def run(files, config, checkpoints, resume=None):
    """Weights and trace of a run, and the state that the first process saved before the third step."""
    saved, state = [], {}

    def save(snapshot):
        assert ranks.rank() == 0
        if snapshot.step == 2 and resume is None:
            checkpoints.save(snapshot)
            state.update({f"state.{name}": tensor.clone() for name, tensor in snapshot.tensors.items()})
        saved.append(snapshot.step)

    done = run_training(MODEL, config, VOCAB, files, CPU, torch.float32, resume=resume, save=save, report=saved.append)
    assert bool(saved) == (ranks.rank() == 0)
    found = {**done.model.state_dict(), **done.trained.trace, **state}
    return {name: tensor for name, tensor in found.items() if not name.endswith("seconds")}


def steps_by_clock(files):
    """The clock of every process runs differently; the first one's counts."""
    config = dataclasses.replace(CONFIG, steps=None, seconds=10.0, reserve_seconds=0.0)
    model = build_model(MODEL, VOCAB, 0, CPU, torch.float32)
    model.prepare(LENGTH)
    clock = SimpleNamespace(seconds=0.0)

    def elapsed():
        clock.seconds += 1.0 + ranks.rank()
        return ranks.decide(clock.seconds)

    batches = open_batches(dataclasses.replace(config, batches="sequential"), files)
    done = train(Trainer(model, config), batches, elapsed)
    return {"steps": torch.tensor(done.steps), "lr": done.trace["lr"], "seconds": done.trace["seconds"]}


def everything(files, folder):
    found = {"clock": steps_by_clock(files)}
    for name, config in CONFIGS.items():
        checkpoints = Checkpoints(folder, {"config": name})
        found[name] = run(files, config, checkpoints)
        found[f"{name} resumed"] = run(files, config, checkpoints, checkpoints.load())
    return found


def contiguous(collective):
    """What gloo takes and NCCL does not."""

    def checked(*tensors, **options):
        assert all(tensor.is_contiguous() for tensor in tensors)
        return collective(*tensors, **options)

    return checked


def rounded_otherwise(model):
    """As on a machine of another kind."""
    if ranks.rank():
        for parameter in model.parameters():
            parameter.data.mul_(1.01)
    return model


def work(rank, world, files, folder, results):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.set_num_threads(1)
    muon._reduce_scatter, muon._all_gather, dist.all_reduce = map(
        contiguous, (muon._reduce_scatter, muon._all_gather, dist.all_reduce)
    )
    run_module.build_model = lambda *arguments: rounded_otherwise(build_model(*arguments))
    found = everything(files, folder)
    if rank == 1:
        Checkpoints(folder, {"config": "global"}).clear()  # only this node's folder, as it were
    with pytest.raises(InputError, match="one shared working folder"):
        Checkpoints(folder, {"config": "global" if rank else "local"}).load()
    results.put((rank, {name: {key: t.numpy() for key, t in part.items()} for name, part in found.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return everything(token_shards(folder, VOCAB, 4000, document=29), folder)


@pytest.fixture(scope="module", params=WORLDS)
def together(request, tmp_path_factory):
    """What every one of several processes found, by rank."""
    folder = tmp_path_factory.mktemp("together")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "pgolf.train.run"])  # slow to import
    files, results = token_shards(folder, VOCAB, 4000, document=29), context.Queue()
    processes = [
        context.Process(target=work, args=(rank, request.param, files, folder, results), daemon=True)
        for rank in range(request.param)
    ]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=240) for _ in processes)  # of a process that died nothing comes
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * request.param
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_any_number_of_processes_finds_what_one_finds(alone, together, name):
    assert together[0][name].keys() == alone[name].keys(), "the first process holds the state of all"
    for key, expected in alone[name].items():
        scale = expected.abs().max().item()
        np.testing.assert_allclose(together[0][name][key], expected.numpy(), rtol=0, atol=1e-4 * scale, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_processes_have_the_same_bits_and_resume_to_them(together, name):
    for found in together.values():
        for key, values in found[name].items():
            np.testing.assert_array_equal(values, together[0][name][key], err_msg=key)
            if not key.startswith("state."):
                np.testing.assert_array_equal(found[f"{name} resumed"][key], values, err_msg=key)


def test_the_first_process_decides_about_time(alone, together):
    for found in together.values():
        for key, expected in alone["clock"].items():
            np.testing.assert_array_equal(found["clock"][key], expected.numpy())
    assert alone["clock"]["steps"] == 3


def test_the_number_of_processes_divides_every_step(tmp_path, monkeypatch):
    curriculum = CurriculumConfig(batch_tokens=4 * LENGTH, batch_steps=3)
    assert largest_world(CONFIG) == 4
    assert largest_world(dataclasses.replace(CONFIG, curriculum=curriculum)) == 1  # 2, 3 and 4 micro-batches
    assert largest_world(dataclasses.replace(CONFIG, finish=FinishConfig(replay_batches=2))) == 1
    monkeypatch.setattr(ranks, "world", lambda: 3)
    with pytest.raises(InputError, match=r"3 processes cannot share out .* divides 4"):
        run_training(MODEL, CONFIG, VOCAB, token_shards(tmp_path, VOCAB, 4000, document=29), CPU, torch.float32)
