"""Fit to the cap in the tiny chain: the stages and the packed program end below the same size, with the same bytes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import safetensors
from conftest import ENV, call

from pgolf.quant.fit import LEAST_SLACK


def test_code_and_model_end_just_below_the_target(workspace: Path, tmp_path: Path) -> None:
    before = json.loads((workspace / "metrics/verify-size.json").read_text())
    target = before["bytes_code"] + round(0.9 * before["bytes_model"])
    text = (workspace / "params.yaml").read_text()
    assert text.count("target_bytes: null") == text.count("codec: auto") == 1
    text = text.replace("target_bytes: null", f"target_bytes: {target}").replace("codec: auto", "codec: brotli")
    (workspace / "params.yaml").write_text(text)
    call("pgolf", "run", "--from", "quantize", cwd=workspace)
    after = json.loads((workspace / "metrics/verify-size.json").read_text())
    assert target - LEAST_SLACK <= after["bytes_total"] <= target
    quantized = json.loads((workspace / "metrics/quantize.json").read_text())
    assert quantized["fit_bytes_model"] == after["bytes_model"]
    with safetensors.safe_open(workspace / "artifacts/quantize/quantized.safetensors", framework="pt") as file:
        scheme = json.loads(file.metadata()["pgolf"])["params"]["quantize"]
    assert scheme["tensors"][0]["k_times"] == quantized["fit_k_times"] > 1

    program = tmp_path / "program"
    shutil.copytree(workspace / "artifacts/tokens", program / "tokens")
    shutil.copy(workspace / "artifacts/tokenizer/tokenizer.model", program)
    shutil.copy(workspace / "artifacts/verify/train_gpt.py", program)
    done = subprocess.run(
        [sys.executable, "train_gpt.py"], cwd=program, env=ENV, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (program / "model.pgolf").read_bytes() == (workspace / "artifacts/compress/model.pgolf").read_bytes()
