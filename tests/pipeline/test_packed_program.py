"""The one file that is counted: it trains, quantizes and scores without pgolf and reaches the same numbers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ENV

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


def test_the_packed_program_alone_repeats_the_run(mini_run: Path, tmp_path: Path) -> None:
    shutil.copy(mini_run / "artifacts/verify/train_gpt.py", tmp_path)
    shutil.copytree(mini_run / "artifacts/tokens", tmp_path / "tokens")
    shutil.copy(mini_run / "artifacts/tokenizer/tokenizer.model", tmp_path)
    script = SUBMISSION_ONLY.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-E", "-c", script], cwd=tmp_path, env=ENV, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"val_loss:(\S+) val_bpb:(\S+)", done.stdout)
    expected = json.loads((mini_run / "metrics/evaluate.json").read_text())
    assert abs(float(found[0]) - expected["val_loss"]) < 1e-6
    assert abs(float(found[1]) - expected["val_bpb"]) < 1e-6
    assert (tmp_path / "model.pgolf").read_bytes() == (mini_run / "artifacts/compress/model.pgolf").read_bytes()


def test_without_a_sidecar_the_tokenizer_gives_the_same_bytes(mini_run: Path, tmp_path: Path) -> None:
    from pgolf.runtime import validation

    shutil.copytree(mini_run / "artifacts/tokens", tmp_path / "tokens")
    tokenizer = mini_run / "artifacts/tokenizer/tokenizer.model"
    _, from_sidecar = validation(tmp_path / "tokens", tokenizer)
    for path in (tmp_path / "tokens").glob("fineweb_val_bytes_*"):
        path.unlink()
    _, from_table = validation(tmp_path / "tokens", tokenizer)
    assert (from_sidecar == from_table).all()
