"""The DAG under DVC: what reruns, what does not, and the commands that compare runs. Every README command runs here."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ENV, ROOT, call, copy_repository, shrink

STAGES = ["tokenize", "train", "score", "calibrate", "quantize", "compress", "evaluate", "report", "verify-size"]


def ran(printed: str) -> list[str]:
    """Stages that DVC ran or would run."""
    return re.findall(r"Running stage '([\w-]+)'", printed)


def commit(folder: Path, message: str) -> None:
    call("git", "add", "-A", cwd=folder)
    call("git", "commit", "-qm", message, cwd=folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the `mini` preset, reproduced once and committed."""
    folder = copy_repository(tmp_path_factory.mktemp("project"))
    (folder / "dvc.lock").unlink(missing_ok=True)
    call("git", "init", "-q", cwd=folder)
    call("git", "config", "user.email", "test@example.invalid", cwd=folder)
    call("git", "config", "user.name", "test", cwd=folder)
    shrink(folder)
    commit(folder, "mini")
    assert sorted(ran(call("dvc", "repro", cwd=folder))) == sorted(STAGES)
    commit(folder, "reproduced")
    return folder


@pytest.fixture
def restored(project: Path) -> Path:
    """The project, put back to its committed state after the test."""
    yield project
    call("git", "checkout", "-q", "--", ".", cwd=project)
    call("git", "clean", "-qfd", cwd=project)
    call("dvc", "checkout", "-q", "-f", cwd=project)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert ran(call("dvc", "repro", cwd=project)) == []
    assert call("git", "status", "--porcelain", cwd=project) == ""


def test_a_quantize_parameter_reruns_quantize_and_what_follows(restored: Path) -> None:
    replace(restored / "params.yaml", "damp: 0.01", "damp: 0.02")
    assert set(ran(call("dvc", "repro", cwd=restored))) == {"quantize", "compress", "evaluate", "report", "verify-size"}
    assert "quantize.damp" in call("dvc", "params", "diff", cwd=restored)
    assert "quantized_bpb" in call("dvc", "metrics", "diff", cwd=restored)


def test_a_new_quantize_key_does_not_retrain(restored: Path) -> None:
    replace(
        restored / "pgolf/quant/config.py",
        "    damp: float = 0.01\n",
        '    novelty: int = 0\n    """A new key."""\n    damp: float = 0.01\n',
    )
    replace(restored / "params.yaml", "  damp: 0.01", "  novelty: 1\n  damp: 0.01")
    would = set(ran(call("dvc", "repro", "--dry", cwd=restored)))
    assert "quantize" in would
    assert not would & {"tokenize", "train", "score", "calibrate"}


def test_editing_evaluation_reruns_no_training(restored: Path) -> None:
    replace(restored / "pgolf/evaluate/windows.py", '"""Which', '"""\nWhich')
    would = set(ran(call("dvc", "repro", "--dry", cwd=restored)))
    assert would >= {"score", "evaluate"}
    assert not would & {"tokenize", "train", "calibrate", "quantize", "compress"}


def test_a_comment_in_the_trainer_does_not_tokenize(restored: Path) -> None:
    replace(restored / "pgolf/train/muon.py", "class Muon:", "# a comment\nclass Muon:")
    would = ran(call("dvc", "repro", "--dry", cwd=restored))
    assert "train" in would
    assert "tokenize" not in would


def readme_commands() -> list[str]:
    """Every command of the README's shell blocks, comments and prompts removed."""
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    return [line for line in lines if line and not line.startswith("#")]


BY_CI = {"make repro", "make test"}
"""Commands that set up a machine: .ci/run calls them on a fresh clone."""


def test_every_command_of_the_readme(project: Path, tmp_path: Path) -> None:
    """In the README's order, on one clone, so that later commands see what earlier ones did."""
    folder = tmp_path / "clone"
    call("git", "clone", "-q", str(project), str(folder), cwd=tmp_path)
    call("git", "config", "user.email", "test@example.invalid", cwd=folder)
    call("git", "config", "user.name", "test", cwd=folder)
    call("dvc", "cache", "dir", "--local", str(project / ".dvc/cache"), cwd=folder)
    call("dvc", "checkout", cwd=folder)
    commands = readme_commands()
    assert len(commands) > 8
    assert set(commands) & BY_CI == BY_CI
    for command in commands:
        if command in BY_CI or command.startswith(("git clone", "cd ", ". ")):
            continue
        if command.startswith("pgolf preset use"):  # the published presets need a GPU: check, then shrink again
            call(*shlex.split(command), cwd=folder)
            call("pgolf", "preset", "use", "mini", cwd=folder)
            continue
        done = subprocess.run(command, cwd=folder, env=ENV, shell=True, text=True, capture_output=True, timeout=400)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_ci_calls_what_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert all(command in script for command in BY_CI)
