"""Diagnoses: outliers against their definitions, shares against the losses, pictures and the command."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pgolf import artifacts, paths
from pgolf.checkpoint_file import Checkpoint
from pgolf.cli import app
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.lab import workbench
from pgolf.lab.diagnosis import by_role, diagnose, outliers
from pgolf.lab.workbench import Workbench, quantized_codes, recorded_scheme
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.params import read_params
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import GridConfig, QuantizeConfig, TensorConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    layers=2, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=1, parallel="none",
    loop_start=0, loop_end=0, loop_runs=1,
)  # fmt: skip
VOCAB = 64
BAD = "blocks.1.mlp.proj.weight"
SCHEME = QuantizeConfig(
    embed=GridConfig(bits=8, k_sigma=12.0), attn=GridConfig(bits=8, k_sigma=12.0), mlp=GridConfig(bits=8, k_sigma=12.0),
    tensors=(TensorConfig(name=BAD, bits=2, k_sigma=2.0),), small_numel=512,
)  # fmt: skip
WINDOWS = EvaluateConfig(seq_len=64, stride=64, batch_tokens=256, subset_targets=300)


@pytest.fixture(scope="module")
def bench():
    """A model that has learned something: of random weights the loss need not rise."""
    torch.manual_seed(0)
    model = GPT(MODEL, VOCAB)
    stream = torch.arange(601) * 7 % 40 + 2
    model.begin_training()
    model.prepare(256)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = model.losses(stream[None, :256], stream[None, 1:257]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.end_training()
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    inputs = {source: torch.randn(99, state[name].size(1)) for name, source in matrix_inputs(MODEL).items()}
    tokens = SimpleNamespace(val=stream.numpy().astype(np.uint16), val_bytes=np.full(601, 3, np.uint16))
    checkpoint = Checkpoint(state, MODEL, VOCAB, "ab" * 32, "c0" * 32)
    hessians = {source: x.T @ x for source, x in inputs.items()}
    return Workbench(checkpoint, hessians, CalibrateConfig(), tokens, torch.device("cpu"), torch.float32)


def test_outliers_are_what_they_are_called():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(200, 400, generator=generator)
    W[3] = 0
    W[5, 7] = 30.0
    scale = torch.full((200,), 0.5, dtype=torch.float16)
    codes = (W / 0.5).round().clamp(-9, 9).to(torch.int8)
    found = outliers(W, codes, scale)
    assert found.largest == pytest.approx(30 / float(W[5].std()), rel=1e-5)
    assert found.clipped == int((W.abs() > 4.75).sum()) >= 1
    assert found.zero_rows == 1
    assert found.kurtosis > 3.5
    W[3], W[5, 7] = W[4], 0.0
    assert outliers(W, codes, scale).kurtosis == pytest.approx(3, abs=0.1)


def test_the_coarse_matrix_has_the_loss(bench):
    found = diagnose(bench, SCHEME, WINDOWS)
    assert found.rise > 0
    shares = {each.report.name: each.share for each in found.matrices}
    assert max(shares, key=shares.get) == BAD
    assert shares[BAD] > 0.8
    stored = quantize_model(bench.checkpoint.state, bench.hessians, matrix_inputs(MODEL), SCHEME).tensors
    state = restore(stored)
    after, before = (bench.score(each, WINDOWS).loss for each in (state, bench.checkpoint.state))
    assert found.rise == pytest.approx(after - before)
    without = bench.score({**state, BAD: bench.checkpoint.state[BAD]}, WINDOWS).loss
    assert shares[BAD] == pytest.approx((after - without) / (after - before))
    assert set(found.codes) == set(shares)
    assert all(torch.equal(code, stored[f"{name}.q"]) for name, code in found.codes.items())
    unmeasured = diagnose(bench, replace(SCHEME, canonical=True), None)
    assert unmeasured.rise is None
    assert {each.share for each in unmeasured.matrices} == {None}
    assert torch.equal(unmeasured.codes[BAD], found.codes[BAD])  # in the checkpoint's order all the same


def test_codes_are_counted_by_role():
    codes = {
        "blocks.0.mlp.fc.weight": torch.tensor([[1, 1, -127]], dtype=torch.int8),
        "blocks.1.mlp.fc.weight": torch.tensor([[127, 1]], dtype=torch.int8),
        "tok_emb.weight": torch.tensor([[0]], dtype=torch.int8),
    }
    counts = by_role(codes)
    assert list(counts) == ["mlp.fc", "tok_emb"]
    assert [int(counts["mlp.fc"][code + 127]) for code in (-127, 0, 1, 127)] == [1, 0, 3, 1]
    assert int(counts["tok_emb"][127]) == 1 == int(counts["tok_emb"].sum())


@pytest.fixture
def workplace(bench, tmp_path, monkeypatch):
    """A folder with the artifact of `quantize`."""
    monkeypatch.chdir(tmp_path)
    values = read_params(ROOT / "params.yaml") | {"evaluate": {"seq_len": 64, "stride": 64, "batch_tokens": 256}}
    Path("params.yaml").write_text(json.dumps(values))
    stored = quantize_model(bench.checkpoint.state, bench.hessians, matrix_inputs(MODEL), SCHEME).tensors
    artifacts.save(
        paths.QUANTIZED, stored, schema="pgolf.quantized", stage="quantize",
        params={"model": to_dict(MODEL), "quantize": to_dict(SCHEME)}, inputs={"checkpoint": bench.checkpoint.sha256},
    )  # fmt: skip
    monkeypatch.setattr(workbench, "open_workbench", lambda: bench)
    return tmp_path


def test_the_command_writes_a_table_and_pictures(workplace):
    done = CliRunner().invoke(app, ["diagnose", "--targets", "300", "--beside", "."], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    found = json.loads(Path("scratch/diagnosis/matrices.json").read_text())
    assert found["rise"] > 0
    assert max(found["matrices"], key=lambda line: line["share"])["name"] == BAD
    for name in ("codes.png", "shares.png"):
        assert (Path("scratch/diagnosis") / name).read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(app, ["diagnose", "--targets", "0", "--out", "quick"]).exit_code == 0
    assert not Path("quick/shares.png").exists()


def test_codes_of_another_checkpoint_are_refused(workplace, bench):
    assert recorded_scheme(bench.checkpoint) == SCHEME
    with pytest.raises(InputError, match="was not quantized from the weights here"):
        recorded_scheme(bench.checkpoint._replace(sha256="dd" * 32))
    assert BAD in quantized_codes(workplace)
    assert set(quantized_codes(workplace)) == set(quantized_codes(paths.QUANTIZED)) < set(matrix_inputs(MODEL))
