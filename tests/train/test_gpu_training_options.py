"""Options of training whose fast path is CUDA's: read-ahead, a bfloat16 embedding, local clipping, late QAT."""

import dataclasses

import numpy as np
import pytest
import torch

from pgolf.data.shards import shard_name, write_shard
from pgolf.model.config import ModelConfig
from pgolf.train.config import CurriculumConfig, MuonConfig, QatConfig, TrainConfig
from pgolf.train.run import run_training

pytestmark = pytest.mark.gpu

VOCAB, LENGTH, MICRO = 256, 256, 2048
MODEL = ModelConfig(layers=2, dim=128, heads=2, kv_heads=1, loop_start=1, loop_end=1, parallel_from=1, xsa_layers=2)
CONFIG = TrainConfig(
    steps=12, seconds=None, seq_len=LENGTH, micro_tokens=MICRO, batch_tokens=2 * MICRO, trace_every=1, ema=0.8,
    loop_at=0.5, compile=False, checkpoint_seconds=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Documents that walk x, 5 x + 3, ... modulo the vocabulary: the next token is certain."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    tokens = []
    for _ in range(300):
        walk = [int(rng.integers(2, VOCAB))]
        for _ in range(int(rng.integers(50, 400))):
            walk.append((5 * walk[-1] + 3) % VOCAB)
        tokens += [1, *walk]
    write_shard(folder / shard_name("train", 0), np.array(tokens))
    return [folder / shard_name("train", 0)]


def losses(shards, **changes):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch._dynamo.reset()
    config = dataclasses.replace(CONFIG, **changes)
    run = run_training(MODEL, config, VOCAB, shards, torch.device("cuda"), torch.bfloat16)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    return run.trained.trace["loss"]


@pytest.mark.parametrize("batches", ["rows", "packed", "sequential", "coprime"])
def test_reading_ahead_changes_nothing(shards, batches):
    ahead, alone = (losses(shards, batches=batches, prefetch=depth) for depth in (3, 0))
    torch.testing.assert_close(ahead, alone, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_options_of_the_last_record_learn(shards, compiled):
    muon = MuonConfig(newton_schulz="polar_express", momentum_dtype="bfloat16", mousse=True, post_row_norm=True)
    found = losses(shards, batches="packed", embed_dtype="bfloat16", clip="local", muon=muon, compile=compiled)
    assert torch.isfinite(found).all()
    assert found[-3:].mean() < found[:3].mean() - 0.5


def test_compiled_late_qat_takes_effect(shards):
    off, on = (losses(shards, compile=True, qat=QatConfig(last=last, bits=3)) for last in (0.0, 0.5))
    torch.testing.assert_close(on[:6], off[:6], rtol=1e-2, atol=1e-2)
    assert (on[7:] - off[7:]).abs().max() > 0.02


def test_the_curriculum_on_the_device(shards):
    curriculum = CurriculumConfig(seq_ramp=0.5, batch_tokens=MICRO, batch_steps=6)
    found = losses(shards, curriculum=curriculum)
    assert found[-3:].mean() < found[:3].mean() - 0.5
