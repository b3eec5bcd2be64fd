"""Every line of the doctor when it is red, and that nothing makes it fall over."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from pgolf import doctor, paths
from pgolf.artifacts import write_json
from pgolf.cli import app
from pgolf.codec import backends

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A clone in which nothing was run yet."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "data/sample", tmp_path / "data/sample")
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def line(name: str) -> doctor.Check:
    """What the doctor says about one thing, as the command shows it."""
    return next(check for check in doctor.examine() if check.name == name)


@pytest.fixture
def only(monkeypatch):
    """Leave one check in place, so that a test does not wait for the others."""

    def keep(name: str) -> doctor.Check:
        monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name]})
        return line(name)

    return keep


def test_old_python() -> None:
    check = doctor.python((3, 9, 1))
    assert (check.state, check.found) == ("fail", "3.9.1")
    assert "make setup PYTHON=python3.11" in check.remedy
    assert doctor.python((3, 11, 0)).state == "ok"


def test_missing_and_old_packages(monkeypatch, only) -> None:
    wanted = ["nothing-of-that-name>=1", "numpy>=99.1", "typer<0.2", "rich >=1, <99", 'pytest; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    check = only("packages")
    assert check.state == "fail"
    assert "nothing-of-that-name is missing" in check.found
    assert "needed is >=99.1" in check.found
    assert "needed is <0.2" in check.found
    assert "rich" not in check.found
    assert "constraints.txt" in check.remedy


@pytest.mark.parametrize(
    ("kept", "broken"),
    [
        (">=2.13", ">=2.13.2"), ("<=2.13.1", "<=2.13.0"), (">2.13", ">2.13.1"), ("<3", "<2.13.1"),
        ("==2.13.1", "==2.13"), ("==2.13.*", "==2.12.*"), ("!=2.13", "!=2.13.1"), ("!=2.12.*", "!=2.13.*"),
        ("~=2.11", "~=2.14"), ("~=2.13.0", "~=2.12.0"),
    ],
)  # fmt: skip
def test_every_mark_of_a_limit_has_its_meaning(monkeypatch, only, kept: str, broken: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.1+cpu")
    for limit, state in ((kept, "ok"), (broken, "fail")):
        monkeypatch.setattr(importlib.metadata, "requires", lambda name, limit=limit: [f"torch{limit}"])
        check = only("packages")
        assert check.state == state, limit
        assert (f"torch is 2.13.1+cpu, needed is {limit}" in check.found) == (state == "fail")


def test_pgolf_that_is_not_installed(monkeypatch, only) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    check = only("packages")
    assert (check.state, check.found) == ("fail", "pgolf is not installed")


@pytest.mark.parametrize("name", ["torch", "CUDA", "attention"])
def test_torch_that_cannot_be_imported(monkeypatch, only, name: str) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    check = only(name)
    assert check.state == "fail"
    assert "torch" in check.found
    assert "pip install" in check.remedy


def test_a_gpu_that_does_not_answer(monkeypatch, only) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    check = only("CUDA")
    assert check.state == "warn"
    assert "nvidia-smi" in check.remedy


def test_a_gpu_that_torch_cannot_use(monkeypatch, only) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert only("CUDA").state == "warn"
    assert "CUDA build" in line("CUDA").remedy
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert line("CUDA").state == "ok"


def test_a_fast_gpu_without_fast_attention(monkeypatch, only) -> None:
    monkeypatch.setattr("pgolf.device.pick_device", lambda: (torch.device("cuda"), torch.bfloat16))
    monkeypatch.setattr("pgolf.model.attention.present", lambda *_: ["varlen", "sdpa"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check = only("attention")
    assert (check.state, check.found) == ("warn", "varlen, sdpa")
    assert "fa4" in check.remedy
    monkeypatch.setattr("pgolf.model.attention.present", lambda *_: ["fa4", "sdpa"])
    assert line("attention").state == "ok"


def test_a_codec_that_is_not_installed_or_lies(monkeypatch, only) -> None:
    monkeypatch.setattr(backends, "decompress", lambda codec, data, size: bytes(size))
    check = only("codecs")
    assert check.state == "fail"
    assert check.found.startswith("brotli does not give back")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    check = line("codecs")
    assert check.state == "fail"
    assert "zstandard" in check.found + check.remedy
    assert "pip install" in check.remedy


@pytest.mark.parametrize(("free", "state"), [(10**6, "fail"), (3 * 10**9, "warn"), (10**12, "ok")])
def test_disk(monkeypatch, only, folder: Path, free: int, state: str) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2 * 10**12, 0, free))
    check = only("disk")
    assert check.state == state
    assert bool(check.remedy) == (state != "ok")


def test_a_wrong_key(folder: Path, only) -> None:
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("  grad_clip:", "  grad_clp:", 1))
    check = only("params.yaml")
    assert check.state == "fail"
    assert "grad_clp" in check.found + check.remedy
    assert "did you mean `grad_clip`" in check.remedy
    assert check.remedy not in check.found, "the table says nothing twice"


def test_missing_documents(folder: Path, only) -> None:
    (folder / "data/sample/val.jsonl.zst").unlink()
    check = only("data")
    assert check == ("data", "fail", "data/sample/val.jsonl.zst is missing",
                     "set `data.val` to a file of documents that exists")  # fmt: skip


def test_a_fetched_export_that_is_not_whole(folder: Path, only) -> None:
    text = (folder / "params.yaml").read_text()
    for name in ("docs", "val"):
        text = text.replace(f"data/sample/{name}.jsonl.zst", "data/x/published.json")
    (folder / "params.yaml").write_text(text)
    check = only("data")
    assert check.state == "fail"
    assert "pgolf fetch" in check.remedy
    manifest = {"schema": "pgolf.published", "version": 1, "name": "sp1024", "repo": "a/b", "revision": "c",
                "files": [{"name": "t.model", "path": "t", "size": 3, "sha256": "0"}]}  # fmt: skip
    write_json(folder / "data/x/published.json", manifest)
    (folder / "data/x/t.model").write_bytes(b"ab")
    check = line("data")
    assert (check.state, check.remedy) == ("fail", "run `pgolf fetch sp1024 --to data/x` again")
    (folder / "data/x/t.model").write_bytes(b"abc")
    assert line("data").state == "ok"


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"schema": "pgolf.tokens", "version": 1}', '{"schema": "x"}'])
def test_a_damaged_manifest(folder: Path, only, content: str) -> None:
    assert only("tokens").state == "warn"
    assert "pgolf tokenize" in line("tokens").remedy
    (folder / paths.TOKENS).mkdir(parents=True)
    (folder / paths.TOKENS / "manifest.json").write_text(content)
    check = line("tokens")
    assert check.state == "fail"
    assert "run `pgolf tokenize` again" in check.remedy


def test_states_of_dvc(folder: Path, only, monkeypatch) -> None:
    answers = SimpleNamespace(returncode=0, stdout="{}", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answers)
    assert only("DVC")[1:3] == ("warn", "no dvc.lock: nothing was run yet")
    lock = folder / "dvc.lock"
    for damaged in ("stages: [", "schema: '2.0'"):
        lock.write_text(damaged)
        check = line("DVC")
        assert check.state == "fail"
        assert "git checkout dvc.lock" in check.remedy
    lock.write_text("schema: '2.0'\nstages:\n  train: {}\n  score: {}\n")
    assert line("DVC")[1:3] == ("ok", "2 stages, nothing changed")
    answers.stdout = json.dumps({"train": ["changed"], "score": []})
    assert line("DVC")[1:] == ("warn", "changed since the last run: score, train", "`dvc repro`")
    answers.returncode, answers.stderr = 1, "Traceback\nModuleNotFoundError: No module named dvc\n"
    check = line("DVC")
    assert check.state == "fail"
    assert "No module named dvc" in check.found
    (folder / ".dvc").rmdir()
    assert line("DVC").state == "warn"


def test_whatever_goes_wrong_is_a_line_with_a_remedy(folder: Path, monkeypatch) -> None:
    def falls_over() -> doctor.Check:
        raise MemoryError("no more")

    monkeypatch.setattr(doctor, "CHECKS", {"strange": falls_over})
    assert line("strange") == ("strange", "fail", "MemoryError: no more", doctor.INSTALL)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "no more" in result.output
    monkeypatch.setattr(doctor, "CHECKS", {"warned": lambda: doctor.Check("warned", "warn", "odd", "mend")})
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0


def test_it_works_in_an_empty_folder_without_the_packages_of_a_run(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'numpy', 'brotli', 'zstandard', 'sentencepiece', 'dvc']))\n"
        "from pgolf.cli import main\n"
        "sys.argv = ['pgolf', 'doctor']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    rows = [row for row in done.stderr.splitlines() if row.startswith("│") and row[2:6].strip()]
    assert {row[2:6].strip() for row in rows} == {"ok", "fail", "warn"}
    assert len(rows) == len(doctor.CHECKS)
