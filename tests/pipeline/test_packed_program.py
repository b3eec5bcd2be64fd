"""The one file that is counted: it trains, quantizes, fits to the cap and scores without pgolf, with the same bytes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
from conftest import ENV, call

from pgolf.quant.fit import LEAST_SLACK

SUBMISSION_ONLY = """
import sys
sys.path = [folder for folder in sys.path if "pgolf" not in folder]  # no checkout
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not there in a submission")
sys.meta_path.insert(0, Refuse())
import runpy
runpy.run_path("train_gpt.py", run_name="__main__")
"""
BLOCKED = ("dvc", "typer", "rich", "ruamel", "safetensors", "matplotlib", "stages")


def metrics(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / f"metrics/{stage}.json").read_text())


@pytest.fixture
def fitted(workspace: Path) -> Path:
    """The run, fitted to a cap that is a tenth of the model below what it needs."""
    before = metrics(workspace, "verify-size")
    target = before["bytes_code"] + round(0.9 * before["bytes_model"])
    text = (workspace / "params.yaml").read_text()
    assert text.count("target_bytes: null") == text.count("codec: auto") == 1
    text = text.replace("target_bytes: null", f"target_bytes: {target}").replace("codec: auto", "codec: gauss")
    (workspace / "params.yaml").write_text(text)
    call("pgolf", "run", "--from", "quantize", cwd=workspace)
    after = metrics(workspace, "verify-size")
    assert target - LEAST_SLACK <= after["bytes_total"] <= target
    quantized = metrics(workspace, "quantize")
    assert quantized["fit_bytes_model"] == after["bytes_model"]
    with safetensors.safe_open(workspace / "artifacts/quantize/quantized.safetensors", framework="pt") as file:
        scheme = json.loads(file.metadata()["pgolf"])["params"]["quantize"]
    assert scheme["tensors"][0]["k_times"] == quantized["fit_k_times"] > 1
    return workspace


def test_the_packed_program_alone_repeats_the_run_and_its_fit(fitted: Path, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copytree(fitted / "artifacts/tokens", program / "tokens")
    for name in ("verify/train_gpt.py", "tokenizer/tokenizer.model"):
        shutil.copy(fitted / "artifacts" / name, program)
    script = SUBMISSION_ONLY.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-E", "-c", script], cwd=program, env=ENV, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"val_loss:(\S+) val_bpb:(\S+)", done.stdout)
    expected = metrics(fitted, "evaluate")
    assert abs(float(found[0]) - expected["val_loss"]) < 1e-6
    assert abs(float(found[1]) - expected["val_bpb"]) < 1e-6
    assert (program / "model.pgolf").read_bytes() == (fitted / "artifacts/compress/model.pgolf").read_bytes()


def test_without_a_sidecar_the_tokenizer_gives_the_same_bytes(mini_run: Path, tmp_path: Path) -> None:
    from pgolf.runtime import validation

    shutil.copytree(mini_run / "artifacts/tokens", tmp_path / "tokens")
    tokenizer = mini_run / "artifacts/tokenizer/tokenizer.model"
    _, from_sidecar = validation(tmp_path / "tokens", tokenizer)
    for path in (tmp_path / "tokens").glob("fineweb_val_bytes_*"):
        path.unlink()
    _, from_table = validation(tmp_path / "tokens", tokenizer)
    assert (from_sidecar == from_table).all()
