"""What users get wrong: one message with the remedy, exit code 2, nothing half-written."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ENV, call

from pgolf.cli import app

TRAIN_SHARD = "artifacts/tokens/fineweb_train_000000.bin"
TRACE = "artifacts/train/trace.safetensors"
MODEL = "artifacts/train/model.safetensors"


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "params.yaml").read_text()
        assert old in text
        (folder / "params.yaml").write_text(text.replace(old, new, 1))

    return change


def patch(name: str, at: int, data: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[at : at + len(data)] = data
        (folder / name).write_bytes(content)

    return change


def truncate(name: str, lost: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-lost])

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def too_long_rows(folder: Path) -> None:
    for key, value in {"batch_tokens": 1024, "micro_tokens": 512, "seq_len": 128}.items():
        edit(f"{key}: {value}", f"{key}: 8000000")(folder)


def diverge(folder: Path) -> None:
    text = re.sub(r"( lr: )[0-9.]+", r"\g<1>1.0e30", (folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(text)


def other_artifact(folder: Path) -> None:
    metrics = folder / "metrics/evaluate.json"
    metrics.write_text(re.sub(r'("artifact_sha256": ")[0-9a-f]{4}', r"\g<1>0000", metrics.read_text()))


CASES = {
    "unknown key": ("quantize", edit("  damp:", "  damping:"), ["quantize.damping", "damp"]),
    "unknown nested key": ("train", edit("    momentum_start:", "    momentum_begin:"), ["train.muon.momentum_begin"]),
    "unknown section": ("train", edit("compress:", "compres:"), ["compres", "compress"]),
    "wrong type": ("train", edit("seed: 42", "seed: '42'"), ["train.seed", "'42'", "whole number"]),
    "contradiction": ("train", edit("seconds: null", "seconds: 60"), ["steps", "seconds", "exactly one"]),
    "bad shape": ("train", edit("kv_heads: 2", "kv_heads: 3"), ["heads", "kv_heads", "3"]),
    "missing documents": ("tokenize", edit("data/tiny/docs", "data/tiny/none"), ["data/tiny/none.jsonl"]),
    "missing shard": ("train", remove(TRAIN_SHARD), ["fineweb_train_", "pgolf tokenize"]),
    "truncated shard": ("train", truncate(TRAIN_SHARD, 10), ["fineweb_train_000000.bin", "pgolf tokenize"]),
    "wrong magic": (
        "train",
        patch(TRAIN_SHARD, 0, b"XXXX"),
        ["fineweb_train_000000.bin", "20240520", "pgolf tokenize"],
    ),
    "validation changed": (
        "evaluate",
        patch("artifacts/tokens/fineweb_val_000000.bin", 2000, b"\x09\x00"),
        ["fineweb_val_000000.bin", "pgolf tokenize"],
    ),
    "sidecar changed": (
        "evaluate",
        patch("artifacts/tokens/fineweb_val_bytes_000000.bin", 2000, b"\x09\x00"),
        ["fineweb_val_bytes_000000.bin", "pgolf tokenize"],
    ),
    "other tokenizer": (
        "evaluate",
        patch("artifacts/tokenizer/tokenizer.model", 50, b"zz"),
        ["tokenizer.model", "pgolf tokenize"],
    ),
    "no checkpoint": ("calibrate", remove("artifacts/train/model.safetensors"), ["model.safetensors", "pgolf train"]),
    "damaged checkpoint": (
        "quantize",
        truncate("artifacts/train/model.safetensors", 100),
        ["model.safetensors", "damaged", "pgolf train"],
    ),
    "wrong kind of artifact": (
        "quantize",
        lambda folder: shutil.copy(folder / TRACE, folder / MODEL),
        ["pgolf.trace", "pgolf.checkpoint", "pgolf train"],
    ),
    "corrupted model": ("evaluate", patch("artifacts/compress/model.pgolf", 3000, b"\x00\x01\x02"), ["pgolf compress"]),
    "truncated model": ("evaluate", truncate("artifacts/compress/model.pgolf", 7), ["pgolf compress"]),
    "diverged": ("train", diverge, ["diverged", "learning rate"]),
    "score of another artifact": ("verify-size", other_artifact, ["metrics", "pgolf evaluate"]),
    "cap above the rules": (
        "verify-size",
        edit("cap_bytes: 16000000", "cap_bytes: 17000000"),
        ["cap_bytes", "17000000"],
    ),
    "no metrics": ("verify-size", remove("metrics/train.json"), ["metrics/train.json", "pgolf train"]),
    "too little data for a batch": ("train", too_long_rows, ["8000000", "more training documents"]),
}


@pytest.mark.parametrize("case", CASES)
def test_one_message_exit_2_and_nothing_written(
    case: str, workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, damage, expected = CASES[case]
    damage(workspace)
    monkeypatch.chdir(workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        app([stage])
    assert stopped.value.code == 2
    printed = " ".join(capsys.readouterr().err.split())
    for part in expected:
        assert part in printed, printed
    after = {
        path: path.stat().st_mtime_ns for path in workspace.rglob("*") if path.is_file() and ".pyc" not in path.name
    }
    assert after == {path: stamp for path, stamp in before.items() if path in after}, "a file was written"


def start_training(folder: Path) -> subprocess.Popen[str]:
    """A training run that is well under way and has saved a state."""
    edit("steps: 12", "steps: 100000")(folder)
    edit("checkpoint_seconds: 0", "checkpoint_seconds: 0.5")(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while not list(folder.glob("scratch/train-*/state.safetensors")):
        assert time.monotonic() < deadline, "no state was saved"
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    return process


def test_a_terminated_stage_says_so_and_leaves_the_old_outputs(workspace: Path) -> None:
    model = workspace / "artifacts/train/model.safetensors"
    before = model.read_bytes()
    process = start_training(workspace)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 2, message
    assert "interrupted" in message
    assert "Traceback" not in message
    assert model.read_bytes() == before
    assert not [name for name in os.listdir(model.parent) if name.startswith(".")]


def test_after_kill_9_training_goes_on_where_it_was(workspace: Path) -> None:
    before = (workspace / MODEL).read_bytes()
    process = start_training(workspace)
    process.kill()
    process.communicate()
    assert (workspace / MODEL).read_bytes() == before
    assert not list((workspace / MODEL).parent.glob(".*"))
    assert start_again(workspace) >= 1


def start_again(folder: Path) -> int:
    """Start the same run again and return the step of the first state it saves."""
    import json

    import safetensors

    (state,) = folder.glob("scratch/train-*/state.safetensors")

    def step() -> int:
        with safetensors.safe_open(state, framework="pt") as file:
            return json.loads(file.metadata()["pgolf"])["params"]["step"]

    first = step()
    stamp = state.stat().st_mtime_ns
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while state.stat().st_mtime_ns == stamp:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert step() > first, "the resumed run started over"
    return first


def test_a_stage_alone_gives_the_same_message(workspace: Path) -> None:
    edit("  damp:", "  damping:")(workspace)
    printed = call("python", "-m", "stages.quantize", cwd=workspace, code=2)
    assert "`quantize.damping` is not a parameter; did you mean `damp`?" in printed
    assert "Traceback" not in printed
