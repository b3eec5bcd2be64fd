"""The agreement of a run with its plain twin, in small."""

import json

import numpy as np
import pytest
import torch

from pgolf.bench.agree import differences, save, training_losses, ways
from pgolf.data.shards import write_shard
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig

MODEL = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, loop_runs=1, rope_dims=8, xsa_layers=0, parallel="none")
TRAIN = TrainConfig(
    steps=10, seconds=None, seq_len=16, micro_tokens=32, batch_tokens=32, kernels="triton", matmul="fp8", graphs=True
)


def test_a_run_agrees_with_its_twin_and_not_with_another_seed(tmp_path):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.random.default_rng(0).integers(2, 60, 4000).astype(np.uint16))
    runs = ways(TRAIN, 11)
    configured, plain = runs["configured"], runs["plain"]
    assert (configured.kernels, configured.matmul, configured.compile) == ("triton", "fp8", True)
    assert (plain.kernels, plain.matmul, plain.compile) == ("plain", "bfloat16", False)
    assert (configured.graphs, plain.graphs) == (True, False)
    with pytest.warns(UserWarning, match="need a GPU"):
        losses = {
            name: training_losses(MODEL, config, 64, [path], torch.device("cpu"), torch.float32)
            for name, config in runs.items()
        }
    assert [len(values) for values in losses.values()] == [11] * 3
    found = differences(losses)
    assert found["plain"] == [0, 0]
    assert min(found["other seed"]) > 1e-4
    save(losses, tmp_path / "out")
    assert json.loads((tmp_path / "out/agreement.json").read_text()) == losses
    assert (tmp_path / "out/agreement.png").stat().st_size > 5000
