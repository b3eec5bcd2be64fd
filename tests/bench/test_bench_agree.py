"""The agreement of a run with its plain twin, in small."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pgolf.bench.agree import agreement, save, training_losses, ways
from pgolf.data.shards import write_shard
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig

MODEL = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, loop_runs=1, rope_dims=8, xsa_layers=0, parallel="none")
TRAIN = TrainConfig(
    steps=10, seconds=None, seq_len=16, micro_tokens=32, batch_tokens=32, kernels="triton", matmul="fp8", graphs=True
)


def test_a_run_agrees_with_its_twins_and_not_with_other_seeds(tmp_path):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.random.default_rng(0).integers(2, 60, 4000).astype(np.uint16))
    runs = ways(TRAIN, 11, seeds=3)
    assert list(runs) == ["configured", "bfloat16", "eager", "seed 43", "seed 44"]
    configured, bfloat16, eager = runs["configured"], runs["bfloat16"], runs["eager"]
    assert (configured.kernels, configured.matmul, configured.compile) == ("triton", "fp8", True)
    assert (bfloat16.kernels, bfloat16.matmul, bfloat16.compile) == ("triton", "bfloat16", True)
    assert (eager.kernels, eager.matmul, eager.compile) == ("plain", "bfloat16", False)
    assert (configured.graphs, eager.graphs) == (True, False)
    assert "bfloat16" not in ways(replace(TRAIN, matmul="bfloat16"), 11)
    with pytest.warns(UserWarning, match="need a GPU"):
        losses = {
            name: training_losses(MODEL, config, 64, [path], torch.device("cpu"), torch.float32)
            for name, config in runs.items()
        }
    assert [len(values) for values in losses.values()] == [11] * 5
    found = agreement(losses)
    assert found.gaps == {"bfloat16": [0], "eager": [0]}
    assert min(found.spread) > 1e-4
    save(losses, tmp_path / "out")
    assert json.loads((tmp_path / "out/agreement.json").read_text()) == losses
    assert (tmp_path / "out/agreement.png").stat().st_size > 5000


def test_twins_are_held_against_the_range_of_the_seeds_by_means_of_ten_steps():
    flat = [1.0] * 20
    near, far = [*[1.3, 0.7] * 5, *[1.01] * 10], [*[1.0] * 10, *[1.2] * 10]
    found = agreement({"configured": flat, "eager": near, "seed 1": [0.9] * 20, "seed 2": far})
    assert found.gaps["eager"] == pytest.approx([0, 0.01])
    assert found.spread == pytest.approx([0.1, 0.3])
    assert found.outside("eager") == 0
    assert agreement({"configured": flat, "eager": far, "seed 1": near}).outside("eager") == 1
