"""`pgolf sweep train`: every row once, failures kept apart, nothing of the user's run touched."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pgolf import paths
from pgolf.checkpoint_file import load_checkpoint
from pgolf.cli import app
from pgolf.config import digest
from pgolf.console import progress
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokens import open_tokens
from pgolf.errors import InputError
from pgolf.evaluate.score import summarize, token_losses, windows_for
from pgolf.quant.config import FitConfig
from pgolf.sections import load_sections
from pgolf.sweep import measure, pool, worker
from pgolf.sweep.grid import Cell, read_grid
from pgolf.sweep.pool import places, run_all
from pgolf.sweep.rows import Row, finish, has_result, plan_rows, read_results, result_path, to_run
from pgolf.sweep.worker import read_job, run_job, weights_path, write_job
from pgolf.train.run import run_training

ROOT = Path(__file__).parents[2]
VOCAB = 300
TINY = """
base:
  set:
    {train.steps: 4, train.seq_len: 32, train.batch_tokens: 128, train.micro_tokens: 128, train.ema: 0.5,
     model.layers: 2, model.dim: 32, model.heads: 2, model.kv_heads: 1, model.xsa_layers: 2, model.parallel: none,
     model.loop_start: 0, model.loop_end: 0, model.loop_runs: 1, evaluate.seq_len: 32, evaluate.stride: 32,
     evaluate.batch_tokens: 512, evaluate.subset_targets: 500, calibrate.batches: 1, calibrate.rows: 2,
     calibrate.seq_len: 32, quantize.small_numel: 256, compress.codec: zstd}
"""
RATES = TINY + "factors: {rate: {low: {}, absurd: {train.muon.lr: 1.0e+30, train.scalar.lr: 1.0e+30}}}"
BITS = TINY + "factors: {bits: {six: {}, four: {quantize.mlp.bits: 4}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which `pgolf tokenize` has run on a few documents."""
    root, rng = tmp_path_factory.mktemp("sweep"), random.Random(0)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    for split, count in (("train", 80), ("val", 8)):
        texts = [" ".join(rng.choices(words, k=rng.randint(40, 150))) for _ in range(count)]
        (root / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = DataConfig(train=str(root / "train.jsonl"), val=str(root / "val.jsonl"))
    tokenize_corpus(data, TokenizeConfig(vocab_size=VOCAB), root / paths.TOKENS, root / paths.TOKENIZER)
    text = (ROOT / "params.yaml").read_text()
    assert "vocab_size: 4096" in text
    (root / "presets").symlink_to(ROOT / "presets")
    (root / "params.yaml").write_text(text.replace("vocab_size: 4096", f"vocab_size: {VOCAB}"))
    return root


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def planned(text, tmp_path, name="grid"):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    tokens = open_tokens(paths.TOKENS, None)
    return plan_rows(read_grid(path), paths.PARAMS, tokens), tokens


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_worker_process_runs_a_job(here, tmp_path):
    rows, _ = planned(TINY + "cells: {base: {}}", tmp_path)
    with progress("sweep") as show:
        run_all(tmp_path, to_run(tmp_path, rows), places(None, 0, {}, 1), show)
    (result,) = read_results(tmp_path, rows)
    assert (result.error, result.metrics["steps"]) == ("", 4)


def test_the_command_trains_what_is_missing_and_reports_what_failed(here, tmp_path, monkeypatch):
    """One row is a training of its own, bit for bit, the other diverges; the workers run in this process."""
    rows, tokens = planned(RATES, tmp_path, "rates")
    monkeypatch.setattr(pool, "run_all", lambda folder, groups, *_: [run_job(folder, g) for g in groups.values()])
    before, out = contents(here), tmp_path / "out"
    command = ["sweep", "train", str(tmp_path / "rates.yaml"), "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1, done.output
    assert contents(here) == before

    good, bad = read_results(out, rows)
    assert "diverged" in bad.error
    assert not bad.metrics
    sections = good.row.sections
    run = run_training(sections.model, sections.train, VOCAB, tokens.train, torch.device("cpu"), torch.float32)
    val = tokens.val[:501]
    losses = token_losses(run.model, val, windows_for(val, sections.evaluate, 32), 512)
    assert good.metrics["bpb"] == summarize(losses, tokens.val_bytes[1:501]).bpb
    assert good.metrics["steps"] == 4
    assert good.metrics["train_loss"] == run.trained.loss
    assert json.loads((out / "results.json").read_text())["rows"][1]["error"] == bad.error

    assert [row.key for group in to_run(out, rows).values() for row in group] == [bad.row.key]  # what a rerun does
    finish(out, bad.row, {**good.metrics, "bpb": good.metrics["bpb"] + 1})
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    report = json.loads((out / "results.json").read_text())
    assert [effect["name"] for effect in report["effects"]] == ["rate=absurd"]
    assert report["effects"][0]["value"] == pytest.approx(1)
    assert [(out / f"effects.{kind}").read_bytes()[:5] for kind in ("png", "svg")] == [b"\x89PNG\r", b"<?xml"]
    assert read_results(out, rows)[0].metrics == good.metrics  # not trained again


def test_rows_that_differ_after_training_share_it(here, tmp_path, monkeypatch):
    rows, _ = planned(BITS, tmp_path)
    trainings = []
    real = measure.measure_training
    monkeypatch.setattr(worker, "measure_training", lambda *args: trainings.append(1) or real(*args))
    blobs = {}
    encode = measure.encode_model
    monkeypatch.setattr(measure, "encode_model", lambda *args: blobs.setdefault(args[3], encode(*args)))
    write_job(tmp_path / "jobs/x.json", rows)
    run_job(tmp_path, read_job(tmp_path / "jobs/x.json"))
    six, four = (result.metrics for result in read_results(tmp_path, rows))
    assert len(trainings) == 1
    assert (six["bpb"], six["train_loss"]) == (four["bpb"], four["train_loss"])
    assert six["quantized_bpb"] != four["quantized_bpb"]
    packed = [blobs[row.sections.quantize] for row in rows]
    assert [six["bytes_model"], four["bytes_model"]] == list(map(len, packed))
    assert len(packed[1]) < len(packed[0])

    result_path(tmp_path, rows[1].key).unlink()  # killed before the second row: its weights are there
    assert list(to_run(tmp_path, rows).values()) == [[rows[1]]]
    run_job(tmp_path, [rows[1]])
    assert len(trainings) == 1
    assert read_results(tmp_path, rows)[1].metrics["quantized_bpb"] == four["quantized_bpb"]
    checkpoint = load_checkpoint(weights_path(tmp_path, rows[0]))

    limit = round(0.9 * six["bytes_model"])  # a fit has its bytes as they will be shipped
    wanted = replace(rows[0].sections.quantize, fit=FitConfig(target_bytes=limit + 1000, code_bytes=1000))
    sections, tokens = replace(rows[0].sections, quantize=wanted), planned(BITS, tmp_path)[1]
    fitted = measure.measure_packed(checkpoint, sections, tokens, {})
    assert 0 <= limit - fitted["bytes_model"] <= 256
    assert fitted["fit_bytes_model"] == fitted["bytes_model"]
    assert fitted["fit_k_times"] > 1


def test_the_key_is_everything_that_the_numbers_depend_on(here, tmp_path):
    (low, absurd), tokens = planned(RATES, tmp_path)
    (six, four), _ = planned(BITS, tmp_path)
    assert low.key != absurd.key
    assert low.training == six.training == four.training
    assert low.key == low.training  # nothing is quantized
    assert len({low.key, six.key, four.key}) == 3
    same = planned(RATES.replace("compress.codec: zstd", "compress.codec: lzma"), tmp_path)[0][0]
    assert same.key == low.key
    for change in (
        ("subset_targets: 500", "subset_targets: 400"),
        ("evaluate.seq_len: 32", "evaluate.seq_len: 64"),
        ("evaluate.seq_len: 32", "evaluate.seq_len: 32, evaluate.isolate_documents: true"),
    ):
        assert planned(RATES.replace(*change), tmp_path)[0][0].key != low.key, change
    object.__setattr__(tokens, "manifest", {**tokens.manifest, "vocab_size": -1})
    grid = tmp_path / "grid.yaml"
    grid.write_text(RATES)
    assert plan_rows(read_grid(grid), paths.PARAMS, tokens)[0].key != low.key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY + "cells: {a: {}, b: {tokenize.vocab_size: 512}}", "sets `tokenize.vocab_size`: rows of a sweep share"),
        (TINY + "cells: {a: {data.train: x}}", "sets `data.train`"),
        (TINY + "cells: {a: {train.steps: null, train.seconds: 30}}", "row `a` has a budget in seconds"),
        (TINY + "cells: {a: {evaluate.subset_targets: 100000000}}", "`evaluate.subset_targets` is 100000000"),
        ("base: {preset: record-1855}\ncells: {a: {}}", "has a budget in seconds"),
        (
            "base: {preset: record-1855, set: {train.steps: 1, train.seconds: null}}\ncells: {a: {}}",
            "row `a` is for 8192 pieces .* the tokens here have 300",
        ),
    ],
)
def test_what_a_sweep_cannot_vary_is_refused_before_anything_runs(here, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        planned(text, tmp_path)


def test_rows_want_tokens_with_or_without_case_operators(here, tmp_path):
    _, tokens = planned(RATES, tmp_path)
    object.__setattr__(tokens, "manifest", {**tokens.manifest, "transform": CASEOPS})
    with pytest.raises(InputError, match=r"row `rate=low` is for tokens without case operators .* those here are not"):
        plan_rows(read_grid(tmp_path / "grid.yaml"), paths.PARAMS, tokens)
    text = (here / "params.yaml").read_text()
    cased = tmp_path / "params.yaml"
    cased.write_text(text.replace("case_ops: false", "case_ops: true"))
    assert len(plan_rows(read_grid(tmp_path / "grid.yaml"), cased, tokens)) == 2


WORKER = """
import json, os, pathlib, sys, time
job = pathlib.Path(sys.argv[1])
rows = json.loads(job.read_text())
work = job.parent.parent
started = work / f"at.{os.environ['PLACE']}.{time.time_ns()}"
busy = work / f"busy.{os.environ['PLACE']}"
busy.touch(exist_ok=False)
started.touch()
print("going on", flush=True)
if rows[0]["name"] == "dies":
    busy.unlink()
    sys.exit("out of luck")
time.sleep({"hangs": 60, "c": 1}.get(rows[0]["name"], 0.1))
busy.unlink()
for row in rows:
    (work / "rows").mkdir(exist_ok=True)
    (work / "rows" / (row["key"] + ".json")).write_text(json.dumps({"metrics": {"bpb": 1}, "error": ""}))
"""


def groups_of(*names):
    sections = load_sections(ROOT / "params.yaml")
    return {name: [Row(Cell(name=name, values={}), sections, name, digest(name)[:16], False)] for name in names}


def test_workers_run_side_by_side_and_one_that_dies_fails_alone(tmp_path):
    groups = groups_of("a", "dies", "b", "c", "d")
    lines = []
    command = (sys.executable, "-c", WORKER)
    run_all(tmp_path, groups, [{"PLACE": "0"}, {"PLACE": "1"}], lines.append, command)
    results = read_results(tmp_path, [row for rows in groups.values() for row in rows])
    errors = {result.row.cell.name: result.error for result in results}
    assert errors.pop("dies") == "the worker ended with code 1: out of luck"
    assert errors == dict.fromkeys("abcd", "")
    assert {path.name.split(".")[1] for path in tmp_path.glob("at.*")} == {"0", "1"}  # no place had two at once
    assert lines[-1].startswith("5 of 5 rows done")
    assert any("going on" in line for line in lines)


def test_an_interrupted_sweep_takes_its_workers_with_it(tmp_path):
    groups = groups_of("hangs", "waits")
    processes = []

    def interrupt(line):
        if "going on" in line:
            processes.append(line)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, groups, [{"PLACE": "0"}], interrupt, (sys.executable, "-c", WORKER))
    rows = [row for group in groups.values() for row in group]
    assert processes
    assert not any(has_result(tmp_path, row) for row in rows)
    assert [result.error for result in read_results(tmp_path, rows)] == ["not run", "not run"]
    assert len(to_run(tmp_path, rows)) == 2


def test_every_worker_has_a_gpu_of_its_own_and_its_share_of_the_cores():
    gpu, threads = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
    assert places(None, 0, {}, 8) == [{}]
    assert places(3, 0, {}, 8) == [{threads: "2"}] * 3
    assert places(3, 0, {threads: "1"}, 8) == [{}] * 3
    assert places(None, 2, {}, 1) == [{gpu: "0", threads: "1"}, {gpu: "1", threads: "1"}]
    assert places(1, 2, {gpu: "5,7"}, 8) == [{gpu: "5"}]
    assert places(None, 2, {gpu: "5,7"}, 8)[1] == {gpu: "7", threads: "4"}
    with pytest.raises(InputError, match=r"--workers is 3, but there are 2 GPUs"):
        places(3, 2, {}, 8)
