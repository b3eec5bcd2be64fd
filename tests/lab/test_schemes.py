"""Sweeps over schemes: rows from one set of Hessians, resumable, the same numbers as the stages."""

import json
import multiprocessing
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pgolf.checkpoint_file import Checkpoint
from pgolf.cli import app
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import summarize
from pgolf.lab import schemes, workbench
from pgolf.lab.command import CALIBRATION_SEED, _materialise
from pgolf.lab.encoding import encoders
from pgolf.lab.schemes import plan_schemes, reference, round_and_score, run_schemes
from pgolf.lab.workbench import Workbench
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.params import read_params, section
from pgolf.quant.artifact import decode_model, encode_model
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import quantize_model
from pgolf.report.front import pareto_front, read_points
from pgolf.sweep.grid import read_grid, set_values

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    layers=2, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=1, parallel="none",
    loop_start=0, loop_end=0, loop_runs=1,
)  # fmt: skip
VOCAB, TOKENIZER = 64, "ab" * 32
CALIBRATION = CalibrateConfig(batches=1, rows=2, seq_len=8)


@pytest.fixture
def bench():
    torch.manual_seed(0)
    state = {name: tensor.detach().clone() for name, tensor in GPT(MODEL, VOCAB).state_dict().items()}
    state = {name: tensor + 0.02 * torch.randn(tensor.shape) for name, tensor in state.items()}
    inputs = {source: torch.randn(99, state[name].size(1)) for name, source in matrix_inputs(MODEL).items()}
    rng = np.random.default_rng(0)
    val = rng.integers(2, VOCAB, 401).astype(np.uint16)
    tokens = SimpleNamespace(
        val=val, val_bytes=np.full(401, 3, np.uint16), manifest={"vocab_size": VOCAB}, vocab_size=VOCAB
    )
    checkpoint = Checkpoint(state, MODEL, VOCAB, TOKENIZER, "c0" * 32)
    return Workbench(
        checkpoint, {source: x.T @ x for source, x in inputs.items()}, CALIBRATION, tokens, torch.device("cpu"),
        torch.float32,
    )  # fmt: skip


@pytest.fixture
def params(tmp_path):
    values = read_params(ROOT / "params.yaml") | {"model": to_dict(MODEL), "compress": {"codec": "brotli"}}
    values["quantize"] = dict(values["quantize"]) | {"small_numel": 512}
    values["calibrate"] = to_dict(CALIBRATION)
    values["evaluate"] = {"seq_len": 64, "stride": 64, "batch_tokens": 256, "subset_targets": 300}
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(values))
    return path


def grid_of(folder, **document):
    path = folder / "grid.yaml"
    path.write_text(json.dumps(document))
    return read_grid(path, CALIBRATION_SEED)


def run_all(rows, bench, folder):
    with ThreadPoolExecutor(1) as pool:
        return run_schemes(rows, bench, folder, pool)


CELLS = {
    "fine": {"quantize.mlp.k_sigma": 6.0},
    "coarse": {"quantize.mlp.k_sigma": 40.0},
    "again": {"quantize.mlp.k_sigma": 6.0},
}


def test_a_row_has_the_numbers_of_the_stages(bench, params, tmp_path):
    rows = plan_schemes(grid_of(tmp_path, cells={"one": {"quantize.attn.k_sigma": 9.0}}), params, bench)
    found = run_all(rows, bench, tmp_path / "out")[0]["metrics"]
    checkpoint, config = bench.checkpoint, replace(section(params, "quantize", QuantizeConfig))
    config = replace(config, attn=replace(config.attn, k_sigma=9.0))
    stored = quantize_model(checkpoint.state, bench.hessians, matrix_inputs(MODEL), config).tensors
    blob = encode_model(stored, MODEL, VOCAB, config, TOKENIZER, "brotli")
    assert found["bytes_model"] == len(blob)
    model, _ = decode_model(blob, torch.device("cpu"), torch.float32)
    ids = torch.from_numpy(bench.tokens.val[:301].astype(np.int64))
    losses = []
    for start in range(0, 300, 64):  # windows of 64 that do not overlap
        end = min(start + 64, 300)
        model.prepare(end - start)
        with torch.no_grad():
            losses.append(model.losses(ids[None, start:end], ids[None, start + 1 : end + 1]).flatten())
    expected = summarize(torch.cat(losses).numpy(), bench.tokens.val_bytes[1:301])
    assert found["quantized_bpb"] == pytest.approx(expected.bpb, rel=1e-6)


def test_a_row_in_turn_calibrates_every_block_behind_the_quantized_ones(bench, params, tmp_path, monkeypatch):
    cells = {"one": {"quantize.lqer.top_k": 0, "quantize.canonical": False}}
    (row,), (plain,) = (plan_schemes(grid_of(tmp_path, cells=cells), params, bench, turn) for turn in (True, False))
    assert row.key != plain.key
    calls = []

    def calibrate(model, config, shards):
        assert (config, shards) == (row.sections.calibrate, "shards")
        calls.append(model.blocks[0].mlp.fc.weight.detach().clone())
        return bench.hessians

    monkeypatch.setattr(schemes, "calibrate", calibrate)
    bench.tokens.train = "shards"
    (found,), (expected,) = (run_all([one], bench, tmp_path / "out") for one in (row, plain))
    assert len(calls) == MODEL.layers + 1
    assert not torch.equal(calls[0], calls[1])
    assert torch.equal(calls[1], calls[2])
    for key in ("bytes_model", "quantized_bpb"):
        assert found["metrics"][key] == expected["metrics"][key]


def test_rows_of_one_calibration_share_its_hessians_and_the_saved_ones_are_used(bench, params, tmp_path, monkeypatch):
    grid = grid_of(tmp_path, cells={name: CELLS[name] for name in ("fine", "coarse")}, seeds=[0, 3])
    rows, seeds = plan_schemes(grid, params, bench), []
    assert [(row.cell.label, row.sections.calibrate.seed) for row in rows] == [
        ("fine @0", 0), ("fine @3", 3), ("coarse @0", 0), ("coarse @3", 3),
    ]  # fmt: skip

    def calibrate(model, config, shards):
        seeds.append(config.seed)
        assert torch.equal(model.blocks[0].mlp.fc.weight, bench.checkpoint.state["blocks.0.mlp.fc.weight"])
        noise = torch.Generator().manual_seed(config.seed)
        return {name: H + 9 * torch.rand(len(H), generator=noise).diag() for name, H in bench.hessians.items()}

    monkeypatch.setattr(workbench, "calibrate", calibrate)
    bench.tokens.train = "shards"
    results = run_all(rows, bench, tmp_path / "out")
    assert seeds == [3]  # 0 is what the bench has
    assert [row["seed"] for row in results] == [0, 3, 0, 3]
    assert len({row["metrics"]["weighted_error"] for row in results}) == 4
    plain = plan_schemes(grid_of(tmp_path, cells={"fine": CELLS["fine"]}), params, bench)
    assert plain[0].key == rows[0].key
    assert plan_schemes(grid, params, replace(bench, calibration=CalibrateConfig()))[0].key == rows[0].key


def test_a_process_that_dies_is_the_error_of_its_row(bench, params, tmp_path):
    class Dead:
        def submit(self, *_):
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    rows, seen = plan_schemes(grid_of(tmp_path, cells={"one": {}}), params, bench), []
    (row,) = run_schemes(rows, bench, tmp_path / "out", Dead(), lambda results: seen.append(len(results)))
    assert "lower --workers" in row["error"]
    assert seen == [0, 1]
    assert not (tmp_path / "out").exists()  # it runs again next time


def test_an_interruption_does_not_wait_for_what_is_encoded():
    start = time.monotonic()

    def interrupted():
        with encoders(1) as pool:
            pool.submit(time.sleep, 600)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


def test_rows_run_once_and_a_stopped_sweep_goes_on(bench, params, tmp_path, monkeypatch):
    rows = plan_schemes(grid_of(tmp_path, cells=CELLS), params, bench)
    assert rows[0].key == rows[2].key != rows[1].key
    measured, real = [], round_and_score

    def counting(row, *rest):
        measured.append(row.cell.name)
        return real(row, *rest)

    monkeypatch.setattr(schemes, "round_and_score", counting)
    first = run_all(rows[:1], bench, tmp_path / "out")
    results = run_all(rows, bench, tmp_path / "out")
    assert measured == ["fine", "coarse"]
    fine, coarse, again = (result["metrics"] for result in results)
    assert first[0]["metrics"] == fine == again
    assert fine["bytes_model"] > coarse["bytes_model"]
    assert fine["weighted_error"] < coarse["weighted_error"]
    before = reference(rows[0], bench, tmp_path / "out")
    assert abs(fine["quantized_bpb"] - before["prequant_bpb"]) < abs(coarse["quantized_bpb"] - before["prequant_bpb"])
    deaf = SimpleNamespace(checkpoint=bench.checkpoint, tokens=bench.tokens)  # cannot score
    assert reference(rows[0], deaf, tmp_path / "out") == before


def test_keys_follow_what_a_row_depends_on(bench, params, tmp_path):
    def key(bench=bench, **document):
        return plan_schemes(grid_of(tmp_path, **document), params, bench)[0].key

    cells = {"a": {}}
    same = key(cells=cells)
    assert key(cells={"other name": {"compress.codec": "brotli"}}) == same
    assert key(cells=cells, base={"set": {"train.ema": 0.5, "evaluate.stride": 32}}) == same
    changes = [
        key(cells={"a": {"quantize.damp": 0.02}}), key(cells={"a": {"compress.codec": "zstd"}}),
        key(cells=cells, base={"set": {"evaluate.subset_targets": 200}}),
        key(cells={"a": {"calibrate.rows": 3}}), key(cells=cells, seeds=[1]),
    ]  # fmt: skip
    assert len({same, *changes}) == 6


def test_a_row_that_cannot_work_leaves_the_others(bench, params, tmp_path):
    cells = {"bad": {"quantize.fit.target_bytes": 300, "quantize.fit.code_bytes": 100}, "good": {}}
    bad, good = run_all(plan_schemes(grid_of(tmp_path, cells=cells), params, bench), bench, tmp_path / "out")
    assert "raise `fit.target_bytes`" in bad["error"]
    assert good["metrics"]["bytes_model"] > 0
    assert not good["error"]


def test_grids_for_other_sweeps_are_refused(bench, params, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # presets lie there
    for document, message in (
        ({"cells": {"a": {"train.steps": 3}}}, "sets `train.steps`"),
        ({"cells": {"a": {}}, "base": {"preset": "record-1493"}}, "another model"),
    ):
        grid = grid_of(tmp_path, **document)
        with pytest.raises(InputError, match=message):
            plan_schemes(grid, params, bench)
    too_many = {"cells": {"a": {}}, "base": {"set": {"evaluate.subset_targets": 401}}}
    (row,) = plan_schemes(grid_of(tmp_path, **too_many), params, bench)
    with pytest.raises(InputError, match="only 400 targets"):
        bench.score(bench.checkpoint.state, row.sections.evaluate)
    assert bench.score(bench.checkpoint.state, replace(EvaluateConfig(), seq_len=64, stride=64)).tokens == 400


def test_a_row_becomes_an_experiment(params, tmp_path, capsys):
    grid = grid_of(tmp_path, cells=CELLS, base={"set": {"quantize.damp": 0.02}}, seeds=[2])
    _materialise(grid, "coarse @2", params)
    assert section(params, "calibrate", CalibrateConfig).seed == 2
    config = section(params, "quantize", QuantizeConfig)
    assert (config.mlp.k_sigma, config.damp, config.attn.k_sigma) == (40.0, 0.02, 12.85)
    said = "dvc exp run -S 'quantize.damp=0.02' -S 'quantize.mlp.k_sigma=40.0' -S 'calibrate.seed=2'"
    assert said in capsys.readouterr().err
    with pytest.raises(InputError, match="did you mean `coarse @2`"):
        _materialise(grid, "coarser", params)
    assert set_values({"a": {"b": 0}}, {"a.b": 1, "a.c.d": 2}) == {"a": {"b": 1, "c": {"d": 2}}}


def test_the_command_prints_the_front_and_draws_it(bench, params, tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "open_workbench", lambda: bench)
    bad = {"quantize.fit.target_bytes": 300, "quantize.fit.code_bytes": 100}
    grid_of(tmp_path, cells={"base": CELLS["coarse"], "fine": CELLS["fine"], "again": CELLS["again"], "bad": bad})
    places = [str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out"), "--params", str(params)]
    done = CliRunner().invoke(app, ["sweep", "quantize", *places, "--workers", "1"], env={"COLUMNS": "200"})
    assert done.exit_code == 1  # a row failed, and says why
    assert "failed: bad: no clip brings the model" in done.output
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["base", "fine", "again", "bad"]
    assert results["rows"][0]["metrics"]["compress_seconds"] > 0
    points = {point.label: point for point in read_points(tmp_path / "out/results.json")}
    assert set(points) == {"base", "fine", "again"}
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    shown = {line[1]: line for line in lines}
    assert (shown["base"][3], shown["base"][6]) == ("1.0000", "1.000")
    assert float(shown["fine"][3]) == pytest.approx(points["fine"].bytes / points["base"].bytes, abs=1e-4)
    starred = {line[1] for line in lines if line[0] == "*"}
    assert starred == {point.label for point in pareto_front(points.values())}
    assert (tmp_path / "out/front.png").read_bytes().startswith(b"\x89PNG")
