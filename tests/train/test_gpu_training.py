"""Short training runs on a CUDA device, eager and compiled: `pytest -m gpu`."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pgolf.data.batches import Batch, document_boundaries
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig
from pgolf.train.loop import Trainer, train
from pgolf.train.muon import POLAR_EXPRESS, STANDARD, newton_schulz
from pgolf.train.run import build_model

pytestmark = pytest.mark.gpu

VOCAB, LENGTH, MICRO = 256, 256, 2048
MODEL = ModelConfig(layers=4, dim=256, heads=4, kv_heads=2, loop_start=1, loop_end=2, parallel_from=3, xsa_layers=4)
CONFIG = TrainConfig(
    steps=20, seconds=None, seq_len=LENGTH, micro_tokens=MICRO, batch_tokens=2 * MICRO, trace_every=1, ema=0.8,
    loop_at=0.5,
)  # fmt: skip


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def stream(packed):
    """Documents that start with BOS (id 1) and then walk x, 5 x + 3, ... modulo the vocabulary."""
    rng = np.random.default_rng(0)
    while True:
        tokens = np.empty(0, dtype=np.int64)
        while len(tokens) < MICRO + 1:
            walk = [int(rng.integers(2, VOCAB))]
            for _ in range(int(rng.integers(20, 400))):
                walk.append((5 * walk[-1] + 3) % VOCAB)
            tokens = np.concatenate([tokens, [1], walk])
        row = tokens[: MICRO + 1]
        inputs, targets = torch.from_numpy(row[:-1].copy()), torch.from_numpy(row[1:].copy())
        if packed:
            yield Batch(inputs[None], targets[None], document_boundaries(row[:-1], LENGTH))
        else:
            yield Batch(inputs.view(-1, LENGTH), targets.view(-1, LENGTH), None)


def run(device, dtype, **changes):
    """Losses of 20 steps, after a warm-up that must not change anything, and the final weights."""
    config = dataclasses.replace(CONFIG, **changes)
    packed = config.batches == "packed"
    torch._dynamo.reset()
    model = build_model(MODEL, VOCAB, config.seed, device, dtype)
    model.prepare(MICRO if packed else LENGTH)
    trainer = Trainer(model, config)
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    trainer.warm_up(stream(packed))
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.state().items())
    done = train(trainer, stream(packed), lambda: 0.0)
    return done.trace["loss"], {name: p.detach().float().cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize("batches", ["rows", "packed"])
def test_compiled_training_learns_and_agrees_with_eager(device, batches):
    compiled, _ = run(device, torch.bfloat16, batches=batches)
    eager, _ = run(device, torch.bfloat16, batches=batches, compile=False)
    for losses in (compiled, eager):
        assert losses.shape == (20,)
        assert torch.isfinite(losses).all()
        assert losses[0].item() == pytest.approx(math.log(VOCAB), rel=0.01)
        assert losses[-3:].mean() < losses[:3].mean() - 1
    assert (compiled[0] - eager[0]).abs() < 0.01
    assert (compiled - eager).abs().max() < 0.1 * eager.max()
    assert (compiled[-5:].mean() - eager[-5:].mean()).abs() < 0.15


@pytest.mark.parametrize(
    "changes",
    [{"clip": "local"}, {"clip": "global"}, {"clip": "local", "kernels": "triton"}],
    ids=["local", "global", "kernels"],
)
def test_replayed_training_is_that_which_was_captured(device, changes):
    """Same kernels in the same order; atomic additions in backward may differ in the last bits."""
    replayed, weights = run(device, torch.bfloat16, batches="packed", graphs=True, **changes)
    plain, twins = run(device, torch.bfloat16, batches="packed", **changes)
    torch.testing.assert_close(replayed, plain, rtol=2e-2, atol=2e-2)
    for name, twin in twins.items():
        assert float((weights[name] - twin).norm()) <= 0.05 * float(twin.norm()) + 1e-3, name


def test_eager_training_on_the_device_follows_the_cpu(device):
    here, _ = run(device, torch.bfloat16, compile=False, steps=6)
    there, _ = run(torch.device("cpu"), torch.float32, steps=6)
    assert (here[0] - there[0]).abs() < 0.01
    assert (here - there).abs().max() < 0.1 * there.max()


def test_a_resumed_run_ends_where_the_other_does(device):
    """Eager and with the same kernels; atomic additions in backward may differ in the last bits."""
    config = dataclasses.replace(CONFIG, compile=False, steps=8, checkpoint_seconds=1.0)
    states = []

    class Stop(Exception):
        pass

    def keep(snapshot):
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in snapshot.tensors.items()}
        states.append(snapshot._replace(tensors=tensors))
        if snapshot.step == 5:
            raise Stop

    results = []
    for mode in ("whole", "interrupted", "resumed"):
        model = build_model(MODEL, VOCAB, 0, device, torch.bfloat16)
        model.prepare(LENGTH)
        resume = states[-1] if mode == "resumed" else None
        batches, clock = stream(False), iter(range(10**6))
        for _ in range(resume.step * config.micro_batches if resume else 0):
            next(batches)
        trainer = Trainer(model, config)
        if mode == "interrupted":
            with pytest.raises(Stop):
                train(trainer, batches, lambda clock=clock: float(next(clock)), save=keep)
        else:
            done = train(trainer, batches, lambda clock=clock: float(next(clock)), resume=resume)
            results.append((done.trace["loss"], trainer.state()))
    (loss, whole), (resumed_loss, resumed) = results
    torch.testing.assert_close(loss, resumed_loss, rtol=1e-2, atol=1e-2)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert resumed[name].device == tensor.device, name
        assert resumed[name].dtype == tensor.dtype, name


@pytest.mark.parametrize(
    ("coefficients", "low", "high"), [(STANDARD, 0.68, 1.15), (POLAR_EXPRESS, 0.84, 1.16)], ids=["standard", "polar"]
)
def test_bfloat16_orthogonalisation_keeps_the_bands(device, coefficients, low, high):
    torch.manual_seed(0)
    x = torch.randn(2, 512, 2048, device=device)
    x[1] = 0
    y = newton_schulz(x.bfloat16(), 5, coefficients)
    assert y.dtype == torch.bfloat16
    assert not y[1].any()
    values = torch.linalg.svdvals(y[0].float())
    assert low < values.min()
    assert values.max() < high
