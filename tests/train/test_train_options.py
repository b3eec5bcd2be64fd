"""Whole runs with the options of `train`: curricula, orders, a bfloat16 embedding, finishing passes."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from token_shards import token_shards

from pgolf.config import build, to_dict
from pgolf.data.prefetch import Prefetch
from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.data.streams import Dealt, InTurn
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.train import finishing
from pgolf.train import run as run_module
from pgolf.train.config import AdamConfig, CurriculumConfig, FinishConfig, LateConfig, MuonConfig, TrainConfig
from pgolf.train.finishing import distillation_loss
from pgolf.train.recorder import Snapshot
from pgolf.train.run import build_model, open_batches, open_rank, run_training
from pgolf.train.schedule import settings
from pgolf.train.trainer import Trainer

VOCAB, LENGTH, STEPS = 32, 16, 6
CPU = torch.device("cpu")
MODEL = ModelConfig(
    layers=2, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=0, loop_end=0, loop_runs=1,
    parallel_from=1, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=STEPS, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=4 * LENGTH, trace_every=2, ema=0.5,
    checkpoint_seconds=1e-9,
)  # fmt: skip


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return token_shards(tmp_path_factory.mktemp("shards"), VOCAB, 700, 700, 700)


def train(shards, config, **options):
    return run_training(MODEL, config, VOCAB, shards, CPU, torch.float32, **options)


def interrupted(shards, config, at):
    """The state of step `at`, as a resumed run reads it."""
    states = []

    def keep(snapshot):
        states.append(snapshot)
        if snapshot.step == at:
            raise Stop

    with pytest.raises(Stop):
        train(shards, config, save=keep)
    tensors = {name: tensor.detach().clone() for name, tensor in states[-1].tensors.items()}
    return Snapshot(at, 100.0, tensors)


EVERYTHING = dataclasses.replace(
    CONFIG,
    batches="coprime",
    ranks=1,
    curriculum=CurriculumConfig(seq_ramp=0.9, batch_tokens=LENGTH, batch_steps=4),
    muon=MuonConfig(mousse=True, momentum_dtype="bfloat16", huber=3.0, taper_from=0.5, taper_to=0.5),
    late=LateConfig(layer=1, muon=2.0, scalar=2.0),
    embed_dtype="bfloat16",
    clip="local",
    average="lawa",
    ema_candidates=(0.9,),
    finish=FinishConfig(replay_batches=3, distill_steps=2),
)


@pytest.mark.parametrize(
    "config",
    [
        EVERYTHING,
        dataclasses.replace(CONFIG, batches="sequential", curriculum=CurriculumConfig(seq_ramp=0.7)),
        dataclasses.replace(CONFIG, batches="packed", ranks=2, schedule="iterations", warmdown_steps=3),
    ],
    ids=["everything", "sequential", "packed ranks"],
)
def test_a_resumed_run_ends_bit_identical(shards, config):
    whole = train(shards, config)
    assert whole.trained.steps == STEPS
    again = train(shards, config, resume=interrupted(shards, config, 4))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
        assert tensor.dtype == torch.float32
    assert again.averages.keys() == whole.averages.keys()
    assert all(torch.equal(again.averages[name], tensor) for name, tensor in whole.averages.items())
    assert torch.equal(again.trained.trace["loss"], whole.trained.trace["loss"])
    assert again.trained.tokens == whole.trained.tokens


def test_the_curriculum_shapes_what_the_model_sees(shards, monkeypatch):
    """Rows of 2, 4, 8 tokens in thirds of the first 90 %, a batch that grows from one micro-batch to three."""
    seen, losses = [], []
    config = dataclasses.replace(
        CONFIG,
        batch_tokens=6 * LENGTH,
        curriculum=CurriculumConfig(seq_ramp=0.9, batch_tokens=2 * LENGTH, batch_steps=4),
    )
    init = Trainer.__init__

    def watch(self, *args):
        init(self, *args)
        inner = self.model.losses
        self.model.losses = lambda ids, targets, segments: (
            seen.append(tuple(ids.shape)),
            inner(ids, targets, segments),
        )[1]

    monkeypatch.setattr(Trainer, "__init__", watch)
    done = train(shards, config, report=lambda report: losses.append(report.tokens)).trained
    rows = {2: (16, 2), 4: (8, 4), 8: (4, 8), 16: (2, 16)}
    expected = [(2, 1), (2, 2), (4, 2), (4, 2), (8, 3), (8, 3)]  # (row length, micro-batches) of each step
    assert seen == [rows[length] for length, count in expected for _ in range(count)]
    total = sum(count for _, count in expected) * 2 * LENGTH
    assert done.tokens == total
    assert losses == [32, 160, 320]  # after steps 1, 3 and 5


@pytest.mark.parametrize("kind", ["rows", "packed", "sequential", "coprime"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_following_ranks_reads_what_they_would(shards, kind, world):
    """Two ranks' order on any number of processes, and one rank's by default; a part is skipped like the whole."""
    config = dataclasses.replace(CONFIG, batches=kind, ranks=2)
    ranks = [open_rank(config, shards, rank, 2) for rank in range(2)]
    processes = [Dealt(open_batches(config, shards), rank, world) for rank in range(world)]
    late = Dealt(open_batches(config, shards), world - 1, world)
    late.skip(1)
    for micro_batch in range(12):
        found = next(processes[micro_batch % world])
        assert torch.equal(found.inputs, next(ranks[micro_batch % 2]).inputs)
        if micro_batch >= world and micro_batch % world == world - 1:
            assert torch.equal(next(late).inputs, found.inputs)
    assert not isinstance(open_batches(dataclasses.replace(config, ranks=1), shards), InTurn)


def test_the_embedding_trains_in_bfloat16(shards):
    model = build_model(MODEL, VOCAB, 0, CPU, torch.float32)
    run_module.cast_embedding(model, torch.bfloat16)
    trainer = Trainer(model, dataclasses.replace(CONFIG, embed_dtype="bfloat16"))
    model.prepare(LENGTH)
    now = settings(CONFIG, 0, 0.0)
    trainer.backward(open_batches(CONFIG, shards), now)
    assert model.tok_emb.weight.grad.dtype == torch.bfloat16
    trainer.update(now)
    state = trainer.state()
    for name in ("model.tok_emb.weight", "adam.tok_emb.weight.exp_avg", "adam.tok_emb.weight.exp_avg_sq"):
        assert state[name].dtype == torch.bfloat16, name
    assert {tensor.dtype for name, tensor in state.items() if "tok_emb" not in name} == {torch.float32}
    assert state["ema.tok_emb.weight"].dtype == torch.float32

    run = train(shards, dataclasses.replace(CONFIG, embed_dtype="bfloat16"))
    weight = run.model.tok_emb.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.bfloat16().float())  # rounded when the average was written back
    full = train(shards, CONFIG).model.tok_emb.weight
    assert not torch.equal(full, full.bfloat16().float())
    assert (weight - full).abs().max() < 0.05 * full.abs().max()


def test_late_scalars_have_their_own_group():
    model = build_model(MODEL, VOCAB, 0, CPU, torch.float32)
    config = dataclasses.replace(
        CONFIG, late=LateConfig(layer=1, scalar=3.0), scalar=AdamConfig(lr=0.1, weight_decay=0.0), grad_clip=1e9
    )
    trainer = Trainer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.update(settings(config, 0, 0.0)._replace(multiplier=0.5))
    for name in ("attn_scale", "attn.q_gain"):
        for layer, lr in ((0, 0.05), (1, 0.15)):
            key = f"blocks.{layer}.{name}"
            torch.testing.assert_close(before[key] - model.get_parameter(key).data, torch.full_like(before[key], lr))
    torch.testing.assert_close(before["tok_emb.weight"] * (1 - 0.5 * 0.03 * 0.085) - 0.015, model.tok_emb.weight.data)


def test_the_replay_burst_repeats_the_last_batches(shards, monkeypatch):
    """2 epochs over the last 3 micro-batches at .1 of the learning rate, one per update, the average going on."""
    taken, rates = [], []
    update, backward = Trainer.update, Trainer.backward

    def watch_backward(self, batches, now):
        def noted():
            for batch in batches:
                taken.append(batch.inputs.clone())
                yield batch

        return backward(self, noted(), now)

    def watch_update(self, now):
        rates.append((now.multiplier, now.micro_batches))
        before = [tensor.clone() for tensor in self.average.average]
        update(self, now)
        for old, new, live in zip(before, self.average.average, self.average.live, strict=True):
            torch.testing.assert_close(new, old + 0.5 * (live - old))

    monkeypatch.setattr(Trainer, "backward", watch_backward)
    monkeypatch.setattr(Trainer, "update", watch_update)
    done = train(shards, dataclasses.replace(CONFIG, finish=FinishConfig(replay_batches=3))).trained
    order = list(itertools.islice(open_batches(CONFIG, shards), 2 * STEPS))
    assert done.steps == STEPS
    assert done.tokens == STEPS * 4 * LENGTH
    assert rates[STEPS:] == [(0.1, 1)] * 6
    expected = [batch.inputs for batch in order] + 2 * [batch.inputs for batch in order[-3:]]
    assert len(taken) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(taken, expected, strict=True))


def test_distillation_loss_token_by_token():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    targets = torch.randint(5, (2, 3))
    config = FinishConfig(distill_weight=0.7, distill_temperature=2.0)
    total = 0.0
    for b in range(2):
        for t in range(3):
            p, q = (F.softmax(logits[b, t] / 2, 0) for logits in (teacher, student))
            divergence = sum(p[v] * (p[v].log() - q[v].log()) for v in range(5))
            total += 0.7 * 4 * divergence - 0.3 * F.log_softmax(student[b, t], 0)[targets[b, t]]
    torch.testing.assert_close(distillation_loss(student, teacher, targets, config), total / 6)
    same = distillation_loss(teacher, teacher, targets, dataclasses.replace(config, distill_weight=1.0))
    assert same.abs() < 1e-6


def test_distillation_pulls_towards_the_average_on_fresh_data(shards, monkeypatch):
    """With all weight on the teacher, the student's outputs come closer to those of the average."""
    seen = []
    loss = finishing.distillation_loss

    def watch(student, teacher, targets, config):
        value = loss(student, teacher, targets, config)
        seen.append((value.item(), teacher.requires_grad, targets.clone()))
        return value

    monkeypatch.setattr(finishing, "distillation_loss", watch)
    config = dataclasses.replace(
        CONFIG,
        ema=1.0,  # the teacher is the initial model
        average="live",
        finish=FinishConfig(distill_steps=4, distill_weight=1.0, distill_lr=0.2),
    )
    plain = train(shards, config)
    assert [grad for _, grad, _ in seen] == [False] * 4
    assert seen[0][0] < 1e-6  # the teacher of `live` is the student itself
    order = open_batches(CONFIG, shards)
    order.skip(12)
    assert all(torch.equal(targets, next(order).targets) for _, _, targets in seen)
    seen.clear()
    distilled = train(shards, dataclasses.replace(config, average="ema"))
    assert seen[0][0] > 1e-4
    assert seen[-1][0] < seen[0][0]
    assert plain.trained.steps == distilled.trained.steps == STEPS


def test_no_thread_reads_ahead_on_a_cpu(shards):
    with run_module.ahead(open_batches(CONFIG, shards), CONFIG, CPU) as stream:
        assert isinstance(stream, ShuffledRows)
    cuda = torch.device("cuda")
    with run_module.ahead(open_batches(CONFIG, shards), dataclasses.replace(CONFIG, prefetch=0), cuda) as stream:
        assert isinstance(stream, ShuffledRows)
    with run_module.ahead(open_batches(CONFIG, shards), CONFIG, cuda) as stream:
        assert isinstance(stream, Prefetch)
        assert stream.pin


def test_everything_passes_through_the_strict_loader():
    assert build(TrainConfig, to_dict(EVERYTHING), "train") == EVERYTHING


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"ranks": 3}, "`ranks` is 3; the 8 micro-batches"),
        ({"ranks": 0}, "`ranks` is 0"),
        ({"prefetch": -1}, "`prefetch` is -1"),
        ({"token_fraction": 0.0}, "`token_fraction` is 0"),
        ({"token_fraction": 1.5}, "`token_fraction` is 1.5"),
        ({"lr_warmup": 1.5}, "`lr_warmup` is 1.5"),
        ({"lr_warmup_steps": -1}, "`lr_warmup_steps` is -1"),
        ({"warmdown_steps": -1}, "`warmdown_steps` is -1"),
        ({"choose_batches": -1}, "`choose_batches` is -1"),
        ({"ema_candidates": [0.9, 1.5]}, "`ema_candidates` holds 1.5"),
        ({"schedule": "step"}, "`train.schedule` is 'step'"),
        ({"clip": "both"}, "`train.clip` is 'both'"),
        ({"average": "mean"}, "`train.average` is 'mean'"),
        ({"embed_dtype": "float16"}, "`train.embed_dtype` is 'float16'"),
        ({"curriculum": {"batch_tokens": 900_000}}, "`curriculum.batch_tokens` 900000 exceeds"),
        ({"curriculum": {"batch_tokens": 0}}, "`batch_tokens` is 0"),
        ({"curriculum": {"seq_ramp": 0.5}, "batches": "packed"}, "`curriculum.seq_ramp` cuts dense rows"),
        ({"curriculum": {"seq_ramp": 0.5}, "seq_len": 4, "micro_tokens": 98_304}, "`curriculum.seq_ramp` cuts dense"),
        ({"muon": {"huber": 0.0}}, "`huber` is 0"),
        ({"muon": {"taper_from": 2.0}}, "`taper_from` is 2"),
        ({"late": {"layer": -1}}, "`layer` is -1"),
        ({"qat": {"bits": 9}}, "`bits` is 9"),
        ({"qat": {"below": 2.0}}, "`below` is 2"),
        ({"snapshots": {"every": 0}}, "`every` is 0"),
        ({"finish": {"distill_temperature": 0.0}}, "`distill_temperature` is 0"),
    ],
    ids=str,
)
def test_refuses_by_name(values, named):
    with pytest.raises(InputError, match=named):
        build(TrainConfig, values, "train")
