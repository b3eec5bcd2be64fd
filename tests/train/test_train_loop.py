import dataclasses
import math
import time

import pytest
import torch

from pgolf.data.batches import Batch
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.config import AdamConfig, MuonConfig, TrainConfig
from pgolf.train.loop import Trainer, train
from pgolf.train.schedule import settings
from pgolf.train.trace import Trace

VOCAB, LENGTH = 64, 16
MODEL = ModelConfig(
    layers=3, dim=32, heads=2, kv_heads=1, rope_dims=4, mlp_mult=2.0, loop_start=1, loop_end=1, loop_runs=3,
    parallel_from=2, xsa_layers=3,
)  # fmt: skip
CONFIG = TrainConfig(
    steps=6, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=4 * LENGTH, trace_every=2, ema=0.5,
    loop_at=0.5, warmdown=0.5,
)  # fmt: skip


def with_(config=CONFIG, **changes):
    return dataclasses.replace(config, **changes)


def trainer(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    model = GPT(MODEL, VOCAB)
    model.prepare(LENGTH)
    return Trainer(model, config)


def stream(rows=2, seed=0, start=0):
    """Endless random batches; the n-th is a function of seed and n."""
    n = start
    while True:
        generator = torch.Generator().manual_seed(1000 * seed + n)
        window = torch.randint(VOCAB, (rows, LENGTH + 1), generator=generator)
        yield Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)
        n += 1


def now(t, looped=True, **changes):
    """What a step in the middle of the plateau runs with, recurrence on."""
    return settings(t.config, 0, 0.0)._replace(runs=t.model.config.loop_runs if looped else 1, **changes)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class FakeClock:
    """Advances by `dt` per micro-batch taken from `batches`, never by itself."""

    def __init__(self, dt, start=0.0):
        self.seconds, self.dt = start, dt

    def __call__(self):
        return self.seconds

    def tick(self, batches, model=None, seen=None):
        for batch in batches:
            if seen is not None:
                seen.append((self.seconds, model.looped))
            self.seconds += self.dt
            yield batch


def test_gradients_of_micro_batches_average_to_those_of_the_whole_batch():
    whole, parts = trainer(with_(micro_tokens=4 * LENGTH)), trainer()
    for t in (whole, parts):
        for parameter in t.model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    batches = stream()
    a, b = next(batches), next(batches)
    joined = Batch(torch.cat([a.inputs, b.inputs]), torch.cat([a.targets, b.targets]), None)
    loss_whole, loss_parts = whole.backward(iter([joined]), now(whole)), parts.backward(iter([a, b]), now(parts))
    torch.testing.assert_close(loss_whole, loss_parts)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert not loss_whole.requires_grad


def test_packed_rows_reach_the_attention():
    """A packed batch scores its documents as if alone; dense scoring of the same row differs."""
    t = trainer(with_(batches="packed", micro_tokens=LENGTH, batch_tokens=LENGTH))
    for parameter in t.model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    ids, targets = torch.randint(VOCAB, (2, 1, LENGTH))
    cut = torch.tensor([0, 5, LENGTH] + [LENGTH] * 61, dtype=torch.int32)
    packed = t.backward(iter([Batch(ids, targets, cut)]), now(t)).item()
    with torch.no_grad():
        parts = [t.model.losses(ids[:, a:b], targets[:, a:b]) for a, b in ((0, 5), (5, LENGTH))]
        dense = t.model.losses(ids, targets).mean().item()
    assert packed == pytest.approx(torch.cat(parts, 1).mean().item(), rel=1e-4)
    assert abs(packed - dense) > 1e-3


def test_both_optimizers_see_the_clipped_gradient():
    t = trainer(with_(grad_clip=0.25, batch_tokens=2 * LENGTH))
    t.backward(stream(), now(t))
    for parameter in t.model.parameters():
        parameter.grad.mul_(1000)
    raw = {name: parameter.grad.clone() for name, parameter in t.model.named_parameters()}
    norm = math.sqrt(sum(grad.double().square().sum().item() for grad in raw.values()))
    assert norm > 1
    t.update(now(t))
    state = t.state()
    for name in t.adam_names:
        torch.testing.assert_close(
            state[f"adam.{name}.exp_avg"], (1 - CONFIG.beta1) * raw[name] * 0.25 / norm, rtol=1e-4, atol=1e-7
        )
    stacked = torch.cat([value.flatten() for name, value in state.items() if name.startswith("muon.")])
    others = [raw[name].square().sum() for name in raw if name not in t.adam_names]
    assert stacked.norm().item() == pytest.approx(math.sqrt(sum(others)) * 0.25 / norm, rel=1e-4)


def test_a_small_gradient_is_not_scaled_up():
    t = trainer(with_(grad_clip=1e6))
    t.backward(stream(), now(t))
    grad = t.model.tok_emb.weight.grad.clone()
    t.update(now(t))
    torch.testing.assert_close(t.state()["adam.tok_emb.weight.exp_avg"], 0.1 * grad)


def test_adamw_groups_step_at_their_scheduled_rates():
    """First AdamW step: p (1 - lr wd) - lr g / (|g| + eps), with decay on gains and gates too."""
    config = with_(embed=AdamConfig(lr=0.4, weight_decay=0.5), scalar=AdamConfig(lr=0.1, weight_decay=0.3))
    t = trainer(config)
    t.backward(stream(), now(t))
    torch.nn.utils.clip_grad_norm_(t.model.parameters(), config.grad_clip)
    before = {name: (p.detach().clone(), p.grad.clone()) for name, p in t.model.named_parameters()}
    t.update(now(t, multiplier=0.25))
    for name, parameter in t.model.named_parameters():
        if name in t.adam_names:
            group = config.embed if name == "tok_emb.weight" else config.scalar
            lr = group.lr * 0.25
            p, g = before[name]
            expected = p * (1 - lr * group.weight_decay) - lr * g / (g.abs() + 1e-8)
            torch.testing.assert_close(parameter.data, expected, rtol=1e-4, atol=1e-5)
        assert parameter.grad is None


def test_multiplier_zero_freezes_the_weights():
    t = trainer()
    before = {name: value.clone() for name, value in t.model.state_dict().items()}
    t.backward(stream(), now(t))
    t.update(now(t, multiplier=0.0))
    assert same(t.model.state_dict(), before)


def test_momentum_follows_the_steps(monkeypatch):
    t = trainer(with_(muon=MuonConfig(momentum_start=0.5, momentum=0.9, momentum_warmup=4, lr=0.3)))
    seen, step = [], t.muon.step
    monkeypatch.setattr(t.muon, "step", lambda lr, mu, decay: (seen.append((lr, mu)), step(lr, mu, decay)))
    train(t, stream(), lambda: 0.0)
    lrs, momenta = zip(*seen, strict=True)
    assert momenta == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert lrs == pytest.approx([0.3, 0.3, 0.3, 0.3, 0.2, 0.1])  # warmdown over the second half


def test_warm_up_leaves_no_trace_in_weights_and_moments():
    t = trainer()
    before = {name: value.clone() for name, value in t.state().items()}
    t.warm_up(stream(seed=5))
    assert same(t.state(), before)
    assert all(parameter.grad is None for parameter in t.model.parameters())
    other = trainer()
    done, expected = train(t, stream(), lambda: 0.0), train(other, stream(), lambda: 0.0)
    assert same(t.state(), other.state())
    assert done.loss == expected.loss


def test_stops_at_the_budget_and_switches_recurrence_on_in_time(monkeypatch):
    """2 micro-batches of 1 s make a step; 20 s less 3 are the budget; recurrence from 0.35 x 17 = 5.95 s on."""

    def forbidden():
        raise AssertionError("the loop read a real clock")

    t = trainer(with_(steps=None, seconds=20.0, reserve_seconds=3.0, loop_at=0.35))
    clock, seen = FakeClock(1.0), []
    with monkeypatch.context() as patched:
        for name in ("time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns"):
            patched.setattr(time, name, forbidden)
        done = train(t, clock.tick(stream(), t.model, seen), clock)
    assert done.steps == 9  # steps start at 0, 2, ..., 16 s; at 18 s the budget of 17 s is spent
    assert done.seconds == clock.seconds == 18
    starts = seen[::2]
    assert [seconds for seconds, _ in starts] == list(range(0, 18, 2))
    assert [looped for _, looped in starts] == [seconds >= 5.95 for seconds, _ in starts]
    assert [looped for _, looped in seen[1::2]] == [looped for _, looped in starts]
    assert t.model.looped


@pytest.mark.parametrize(("loop_at", "first"), [(0.0, 0), (0.5, 3), (0.51, 4), (1.0, 6)])
def test_recurrence_by_steps(loop_at, first):
    t = trainer(with_(loop_at=loop_at))
    clock, seen = FakeClock(0.0), []
    train(t, clock.tick(stream(), t.model, seen), clock)
    assert [looped for _, looped in seen[::2]] == [step >= first for step in range(6)]
    assert t.model.looped  # evaluation always runs with recurrence


def test_the_average_becomes_the_model():
    t = trainer()
    train(t, stream(), lambda: 0.0)
    assert same({name: p.data for name, p in t.model.named_parameters()}, t.average.state())
    still = trainer(with_(ema=1.0, steps=2))  # an average that never moves shows that it is what remains
    train(still, stream(), lambda: 0.0)
    assert same(still.model.state_dict(), trainer().model.state_dict())


def test_same_seed_same_bits_other_seed_other_weights():
    results = []
    for seed in (0, 0, 1):
        t = trainer(with_(steps=4), seed=seed)
        done = train(t, stream(), lambda: 0.0)
        results.append((t.state(), done))
    assert same(results[0][0], results[1][0])
    assert same(results[0][1].trace, results[1][1].trace)
    assert not same(results[0][0], results[2][0])


def test_trace_has_the_documented_series():
    t, clock = trainer(with_(steps=7, trace_every=3, seconds=None)), FakeClock(0.5)
    trace = train(t, clock.tick(stream()), clock).trace
    entries, layers = 3, 3
    shapes = {name: tuple(values.shape) for name, values in trace.items()}
    assert shapes == {
        **dict.fromkeys(("step", "seconds", "lr", "loss"), (entries,)),
        "grad_norm": (entries, layers),
    }
    assert trace["step"].tolist() == [1, 4, 7]
    assert trace["seconds"].tolist() == [1.0, 4.0, 7.0]
    assert trace["lr"].tolist() == pytest.approx([1, 1, 2 / 7])
    assert trace["loss"][0].item() == pytest.approx(math.log(VOCAB), rel=0.01)
    assert (trace["grad_norm"] > 0).all()


def test_trace_takes_the_gradient_norm_of_each_layer_before_clipping():
    t = trainer(with_(grad_clip=1e-3))
    t.backward(stream(), now(t))
    expected = [math.sqrt(sum(p.grad.square().sum().item() for p in block.parameters())) for block in t.model.blocks]
    again = trainer(with_(grad_clip=1e-3))
    trace = train(again, stream(), lambda: 0.0).trace
    assert max(expected) > 1e-3
    looped_off = trainer(with_(grad_clip=1e-3))
    looped_off.backward(stream(), now(looped_off, looped=False))
    plain = [math.sqrt(sum(p.grad.square().sum().item() for p in b.parameters())) for b in looped_off.model.blocks]
    assert trace["grad_norm"][0].tolist() == pytest.approx(plain, rel=1e-4)


def test_an_empty_trace_is_empty():
    assert Trace(trainer().model).tensors() == {}


def test_reports_every_traced_step():
    reports = []
    t, clock = trainer(), FakeClock(1.0)
    done = train(t, clock.tick(stream()), clock, report=reports.append)
    assert [report.step for report in reports] == [1, 3, 5]
    assert [report.tokens for report in reports] == [64, 192, 320]
    assert [report.fraction for report in reports] == pytest.approx([0, 2 / 6, 4 / 6])
    assert [report.loss for report in reports] == pytest.approx(done.trace["loss"].tolist())


def learnable(rows):
    """Row r is the walk x, 3 x + 1, ... modulo the vocabulary, from a random start: the next token is certain."""
    generator = torch.Generator().manual_seed(0)
    while True:
        walk = [torch.randint(VOCAB, (rows,), generator=generator)]
        for _ in range(LENGTH):
            walk.append((3 * walk[-1] + 1) % VOCAB)
        window = torch.stack(walk, 1)
        yield Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)


@pytest.mark.parametrize("kind", ["standard", "polar_express"])
def test_learns_a_learnable_task(kind):
    config = with_(
        steps=30, micro_tokens=8 * LENGTH, batch_tokens=8 * LENGTH, ema=0.8, muon=MuonConfig(newton_schulz=kind)
    )
    t = trainer(config)
    done = train(t, learnable(8), lambda: 0.0)
    assert done.trace["loss"][0].item() == pytest.approx(math.log(VOCAB), rel=0.01)
    assert done.loss < 0.5
    ids, targets, _ = next(learnable(4))
    assert t.model.losses(ids, targets).mean().item() < 1.0  # the averaged weights have learnt it too
