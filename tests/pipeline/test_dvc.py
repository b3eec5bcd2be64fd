"""The DAG under DVC: what reruns and what does not. Every command of the README runs here or in the guide's test."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import ENV, ROOT, call
from projects import as_project, ran

STAGES = ["tokenize", "train", "score", "calibrate", "quantize", "compress", "evaluate", "report", "verify-size"]


def would_run(folder: Path, *options: str) -> set[str]:
    return {*ran(call("dvc", "repro", "--dry", *options, cwd=folder))}


@pytest.fixture(scope="module")
def project(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which the `mini` preset was reproduced and committed."""
    folder = as_project(mini_run, tmp_path_factory.mktemp("dvc") / "project")
    assert would_run(folder, "--force") == {*STAGES}
    return folder


@pytest.fixture
def restored(project: Path) -> Path:
    """The project; sources are put back to the committed state after the test, which runs no stage."""
    yield project
    call("git", "checkout", "-q", "--", ".", cwd=project)
    assert call("git", "status", "--porcelain", cwd=project) == ""


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_second_repro_does_nothing(project: Path) -> None:
    assert ran(call("dvc", "repro", cwd=project)) == []
    assert call("git", "status", "--porcelain", cwd=project) == ""


def test_a_quantize_parameter_reruns_quantize_and_what_follows(restored: Path) -> None:
    replace(restored / "params.yaml", "damp: 0.01", "damp: 0.02")
    assert would_run(restored, "--force-downstream") == {"quantize", "compress", "evaluate", "report", "verify-size"}


def test_a_new_quantize_key_does_not_retrain(restored: Path) -> None:
    replace(
        restored / "pgolf/quant/config.py",
        "    damp: float = 0.01\n",
        '    novelty: int = 0\n    """A new key."""\n    damp: float = 0.01\n',
    )
    replace(restored / "params.yaml", "  damp: 0.01", "  novelty: 1\n  damp: 0.01")
    would = would_run(restored)
    assert "quantize" in would
    assert not would & {"tokenize", "train", "score", "calibrate"}


def test_editing_evaluation_reruns_no_training(restored: Path) -> None:
    replace(restored / "pgolf/evaluate/windows.py", '"""Which', '"""\nWhich')
    would = would_run(restored)
    assert would >= {"score", "evaluate"}
    assert not would & {"tokenize", "train", "calibrate", "quantize", "compress"}


def test_a_comment_in_the_trainer_does_not_tokenize(restored: Path) -> None:
    replace(restored / "pgolf/train/muon.py", "class Muon:", "# a comment\nclass Muon:")
    would = would_run(restored)
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
BY_GUIDE = ("dvc repro", "dvc exp run", "dvc params diff", "dvc metrics diff", "dvc exp show", "dvc plots diff")
"""Commands that test_guide.py runs with other values."""


def test_every_command_of_the_readme(workspace: Path) -> None:
    """In the README's order, on one copy, so that later commands see what earlier ones did."""
    call("git", "init", "-q", cwd=workspace)
    guide = (ROOT / "docs/guide.md").read_text()
    assert all(f"\n{command} " in guide for command in BY_GUIDE)
    commands = readme_commands()
    assert len(commands) > 8
    assert set(commands) & BY_CI == BY_CI
    for command in commands:
        if command in BY_CI or command.startswith(("git clone", "cd ", ". ", *BY_GUIDE)):
            continue
        if command.startswith("pgolf preset use"):  # the published presets need a GPU: check, then shrink again
            call(*shlex.split(command), cwd=workspace)
            call("pgolf", "preset", "use", "mini", cwd=workspace)
            continue
        done = subprocess.run(command, cwd=workspace, env=ENV, shell=True, text=True, capture_output=True, timeout=400)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_ci_calls_what_the_readme_says() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert all(command in script for command in BY_CI)
