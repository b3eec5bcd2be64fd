"""The training benchmark measures what it says, on a CPU in small."""

import numpy as np
import pytest
import torch

from pgolf import ranks
from pgolf.bench.parts import by_part, part_of
from pgolf.bench.train import attended, matmul_rate, measure_training
from pgolf.data.batches import Batch, document_boundaries
from pgolf.data.shards import write_shard
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.flops import forward_flops
from pgolf.train.config import TrainConfig

MODEL = ModelConfig(
    layers=3,
    dim=32,
    heads=2,
    kv_heads=1,
    loop_start=1,
    loop_end=1,
    loop_runs=2,
    rope_dims=8,
    xsa_layers=2,
    parallel="none",
)
TRAIN = TrainConfig(steps=10, seconds=None, seq_len=16, micro_tokens=32, batch_tokens=64, compile=False)


@pytest.fixture
def shards(tmp_path):
    path = tmp_path / "fineweb_train_000000.bin"
    write_shard(path, np.random.default_rng(0).integers(2, 60, 4000).astype(np.uint16))
    return [path]


def test_both_phases_are_measured_and_recurrence_costs(shards):
    device = torch.device("cpu")
    measured = measure_training(MODEL, TRAIN, 64, shards, device, torch.float32, steps=2)
    assert [phase.looped for phase in measured.phases] == [False, True]
    for phase in measured.phases:
        assert phase.tokens_per_second == pytest.approx(64 / phase.milliseconds * 1e3)
        per_token = phase.flops / phase.tokens_per_second
        assert per_token == pytest.approx(3 * forward_flops(MODEL, 64, 8.5, phase.looped))
    assert sum(kernel.share for kernel in measured.kernels) == pytest.approx(1)
    calls = {kernel.name: kernel.calls for kernel in measured.kernels}
    assert calls["aten::_fused_adamw_"] >= 1  # the optimizer is inside


def test_processes_that_cannot_share_out_a_step_are_refused(shards, monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 3)
    with pytest.raises(InputError, match="3 processes"):
        measure_training(MODEL, TRAIN, 64, shards, torch.device("cpu"), torch.float32, steps=1)


def test_a_model_without_recurrence_has_one_phase(shards):
    plain = ModelConfig(layers=2, dim=32, heads=2, kv_heads=1, loop_runs=1, rope_dims=8, xsa_layers=0, parallel="none")
    measured = measure_training(plain, TRAIN, 64, shards, torch.device("cpu"), torch.float32, steps=1)
    assert [phase.looped for phase in measured.phases] == [False]


def test_keys_are_counted_by_segment():
    tokens = np.array([1, 5, 5, 1, 5, 1, 5, 5, 5, 5])
    row = torch.from_numpy(tokens)[None]
    segments = [3, 2, 4, 1]  # the last document is cut after 4
    expected = sum(n * (n + 1) / 2 for n in segments) / 10
    assert attended(Batch(row, row, document_boundaries(tokens, 4))) == pytest.approx(expected)
    assert attended(Batch(row, row, None)) == 5.5


def test_kernels_are_summed_by_part():
    names = {
        "kernel_cutlass_kernel_flash_attncuteflash_bwd_sm90": "attention",
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT": "matrix products",
        "triton_red_fused__log_softmax__to_copy__unsafe_view": "loss",
        "triton_poi_fused__unsafe_view_leaky_relu_pow_10": "activation",
        "void at::native::vectorized_elementwise_kernel<8, at::native::FillFunctor<float>>": "copies and fills",
        "_norm_backward": "norms, residuals, gates",
        "void at::native::multi_tensor_apply_kernel": "optimizer and averages",
        "something": "other",
    }
    assert {name: part_of(name) for name in names} == names
    found = by_part([("_norm_backward", 2.0, 1.0, 0.2), ("aten::mm", 3.0, 3.0, 0.6), ("_lanes_forward", 1.0, 1.0, 0.2)])
    assert found == [("matrix products", 3.0, 3.0, 0.6), ("norms, residuals, gates", 3.0, 2.0, 0.4)]


def test_a_matrix_product_has_a_rate():
    assert matmul_rate(torch.device("cpu")) > 1e9
