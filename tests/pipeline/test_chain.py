"""The chain without DVC: what a finished run leaves, and that it says the truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
from conftest import call

from pgolf.data.shards import read_shard
from pgolf.presets import apply_preset
from stages.evaluate import evaluate

CONTRACT = {
    "tokenize": {"train_tokens", "val_tokens", "val_documents", "val_bytes", "bytes_per_token"},
    "train": {
        *("steps", "tokens", "train_seconds", "compile_seconds", "tokens_per_second"),
        *("train_loss", "peak_memory_bytes", "world_size"),
    },
    "score": {"prequant_bpb", "prequant_loss"},
    "calibrate": {"calibrate_seconds", "calibrate_tokens"},
    "quantize": {"bits_per_weight_entropy", "weighted_error", "quantize_seconds"},
    "compress": {"bytes_model", "bits_per_weight", "compress_seconds", "decompress_seconds"},
    "evaluate": {
        *("val_bpb", "val_loss", "quantized_bpb", "ttt_gain_bpb", "eval_seconds"),
        *("warmup_seconds", "scored_tokens", "scored_bytes"),
    },
    "verify-size": {"bytes_code", "bytes_model", "bytes_total", "margin_bytes"},
}
"""Keys that other tools read."""


def metrics(folder: Path, stage: str) -> dict[str, float]:
    return json.loads((folder / "metrics" / f"{stage}.json").read_text())


def test_every_stage_writes_its_contract_as_flat_metrics(mini_run: Path) -> None:
    for stage, keys in CONTRACT.items():
        found = metrics(mini_run, stage)
        assert keys <= set(found), (stage, keys - set(found))
        assert all(isinstance(value, int | float | str | bool) for value in found.values()), stage


def test_the_score_can_be_added_up_again_from_the_saved_losses(mini_run: Path) -> None:
    losses = safetensors.torch.load_file(mini_run / "artifacts/evaluate/losses.safetensors")["losses"].double()
    sidecar = read_shard(mini_run / "artifacts/tokens/fineweb_val_bytes_000000.bin")
    found = metrics(mini_run, "evaluate")
    assert len(losses) == found["scored_tokens"] == metrics(mini_run, "tokenize")["val_tokens"] - 1
    assert int(np.sum(sidecar[1:], dtype=np.int64)) == found["scored_bytes"]
    assert math.isclose(float(losses.sum()) / math.log(2) / found["scored_bytes"], found["val_bpb"], rel_tol=1e-12)


def test_sizes_are_those_of_the_files(mini_run: Path) -> None:
    found = metrics(mini_run, "verify-size")
    assert found["bytes_model"] == (mini_run / "artifacts/compress/model.pgolf").stat().st_size
    assert found["bytes_code"] == (mini_run / "artifacts/verify/train_gpt.py").stat().st_size
    assert found["margin_bytes"] == 16_000_000 - found["bytes_total"] > 0
    parts = metrics(mini_run, "compress")
    streams = sum(value for key, value in parts.items() if key.startswith("bytes_") and key != "bytes_model")
    assert streams == found["bytes_model"]


def test_a_laptop_never_passes_the_clocks_of_eight_gpus(mini_run: Path) -> None:
    found = metrics(mini_run, "verify-size")
    assert found["training_clock_verdict"] == found["evaluation_clock_verdict"] == "not comparable"
    assert found["scored_once_verdict"] == found["size_verdict"] == "pass"


def test_artifacts_name_their_inputs_and_nothing_of_the_machine(mini_run: Path) -> None:
    for path in (mini_run / "artifacts").rglob("*.safetensors"):
        with safetensors.safe_open(path, framework="pt") as file:
            assert list(file.metadata()) == ["pgolf"]
            meta = json.loads(file.metadata()["pgolf"])
        assert set(meta) >= {"schema", "version", "stage", "params", "inputs"}, path
        assert str(mini_run) not in json.dumps(meta)


def test_stages_are_deterministic_byte_for_byte(workspace: Path, mini_run: Path) -> None:
    names = ["train/model", "calibrate/hessians", "quantize/quantized", "evaluate/losses"]
    call("pgolf", "run", "--from", "train", "--to", "evaluate", cwd=workspace)
    for name in [f"{name}.safetensors" for name in names] + ["compress/model.pgolf"]:
        assert (workspace / "artifacts" / name).read_bytes() == (mini_run / "artifacts" / name).read_bytes(), name


def test_pictures_are_pictures_and_the_curve_has_its_columns(mini_run: Path) -> None:
    report = mini_run / "artifacts/report"
    drawn = {kind: {path.stem for path in (report / kind).glob(f"*.{kind}")} for kind in ("png", "svg")}
    assert drawn["png"] == drawn["svg"]
    assert {"loss", "gradient-norms", "weights", "quantization-errors", "bytes", "score-by-class"} <= drawn["png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (report / "png").iterdir())
    assert all(path.read_bytes().startswith(b"<?xml") for path in (report / "svg").iterdir())
    header, *rows = (mini_run / "artifacts/report/loss.csv").read_text().splitlines()
    assert header == "step,seconds,lr,loss"
    assert len(rows) == 6  # 12 steps, every second one


def test_windows_that_do_not_overlap_are_scored_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score and the plain one are then the same numbers, each stored."""
    monkeypatch.chdir(workspace)
    apply_preset(Path("params.yaml"), also={"evaluate": {"stride": 128}})
    evaluate()
    losses = safetensors.torch.load_file("artifacts/evaluate/losses.safetensors")
    assert losses["losses"].equal(losses["plain_losses"])
    found = metrics(workspace, "evaluate")
    assert found["val_bpb"] == found["quantized_bpb"]


def test_part_of_the_chain_runs_alone(workspace: Path) -> None:
    before = (workspace / "artifacts/train/model.safetensors").stat().st_mtime_ns
    printed = call("pgolf", "run", "--from", "quantize", "--to", "compress", cwd=workspace)
    assert "quantize: done" in printed
    assert "evaluate" not in printed
    assert (workspace / "artifacts/train/model.safetensors").stat().st_mtime_ns == before


def test_a_gate_that_fails_exits_with_1_after_writing_its_report(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text().replace("cap_bytes: 16000000", "cap_bytes: 5000")
    (workspace / "params.yaml").write_text(text)
    printed = call("pgolf", "verify-size", cwd=workspace, code=1)
    assert "fail" in printed
    assert "5,000" in printed
    assert "Traceback" not in printed
    assert json.loads((workspace / "artifacts/verify/report.json").read_text())["failed"] is True


def test_unpack_gives_the_dequantized_weights(workspace: Path) -> None:
    call("pgolf", "unpack", "artifacts/compress/model.pgolf", "out.safetensors", cwd=workspace)
    weights = safetensors.torch.load_file(workspace / "out.safetensors")
    trained = safetensors.torch.load_file(workspace / "artifacts/train/model.safetensors")
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in trained.items()}
    name = "blocks.0.mlp.fc.weight"
    error = (weights[name] - trained[name]).norm() / trained[name].norm()
    assert 0.001 < float(error) < 0.2
