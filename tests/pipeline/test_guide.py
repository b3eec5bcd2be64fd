"""Every command of docs/guide.md, in its order, on a tiny run; what the page says about them; and what they left."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ENV, ROOT, call
from projects import as_project, ran

from pgolf import paths
from pgolf.runs import experiments, load_run

PAGE = (ROOT / "docs/guide.md").read_text("utf-8")


class Day(NamedTuple):
    """The page's commands, run."""

    root: Path
    """Holds `project`, its remotes `store` and `hub.git`, and the clone `elsewhere`."""
    printed: list[tuple[str, str]]
    """Line of the page, comment included, and what it printed."""

    def of(self, start: str, comment: str = "") -> str:
        """What the first line with this start and comment printed."""
        return next(text for line, text in self.printed if line.startswith(start) and comment in line)


@pytest.fixture(scope="module")
def day(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Day:
    """The first command that fails ends the script and the tests."""
    folder = as_project(mini_run, tmp_path_factory.mktemp("guide") / "project")
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    script = "set -eo pipefail\n" + "".join(f"echo '@@ {line}'\n{line}\n" for line in lines)
    identity = {
        f"GIT_{who}_{key}": "test@example.invalid" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**ENV, **identity, "PWD": os.fspath(folder)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=570,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    parts = re.split(r"^@@ (.*)\n", done.stdout, flags=re.MULTILINE)[1:]
    assert [line.strip() for line in parts[::2]] == [line.strip() for line in lines]
    return Day(folder.parent, list(zip(parts[::2], parts[1::2], strict=True)))


def test_the_page_has_what_it_promises() -> None:
    for command in (
        "dvc repro ", "dvc exp run -n finer -S quantize", "dvc repro --dry --downstream quantize", "--queue",
        "dvc exp show", "dvc params diff", "dvc plots diff", "dvc push", "dvc pull", "pgolf adopt", "pgolf keep",
        "pgolf restore",
    ):  # fmt: skip
        assert command in PAGE, command


def test_each_command_does_what_the_page_says(day: Day) -> None:
    assert ran(day.of("dvc repro", "nothing runs")) == []
    assert ran(day.of("dvc exp run -n finer")) == ["quantize", "compress", "evaluate"]
    assert "quantize.mlp.k_sigma" in day.of("dvc params diff")
    assert "quantized_bpb" in day.of("dvc metrics diff")
    assert "**Cannot tell." in day.of("pgolf compare")
    assert "dvc_plots" in day.of("dvc plots diff")
    assert "train" in ran(day.of("dvc repro --dry"))
    downstream = day.of("dvc repro --dry --downstream")
    assert "'quantize'" in downstream
    assert not any(f"'{stage}'" in downstream for stage in ("tokenize", "train", "calibrate"))
    assert ran(day.of("dvc exp run --run-all")) == ["train", "score"] * 2
    assert "finer" in day.of("dvc exp show")
    assert {*ran(day.of("dvc repro", "the gates"))} == {"report", "verify-size"}  # `finer` was applied, and is cached
    assert not ran(day.of("dvc repro --allow-missing"))
    assert "origin" in day.of("pgolf keep")
    assert "finer-mlp" in day.of("pgolf restore", "the list")
    assert "losses.safetensors" in day.of("pgolf restore finer-mlp")  # said to be left out
    assert ran(day.of("dvc repro train")) == ["train"]


def test_an_experiment_that_stopped_early_has_no_score_of_another_run(day: Day) -> None:
    project = day.root / "project"
    found = {name: {*load_run(name, project).metrics} for name in experiments(project)}
    assert found.pop("finer") == {"tokenize", "train", "score", "calibrate", "quantize", "compress", "evaluate"}
    assert list(found.values()) == [{"tokenize", "train", "score"}] * 2
    assert load_run("HEAD", project).value("verify-size", "margin_bytes") > 0


def digests(folder: Path) -> dict[str, str]:
    """Of everything that a kept result brings back, but for outputs that are not pushed."""
    files = [path for path in (folder / "artifacts").rglob("*") if path.is_file() and path.parent.name != "evaluate"]
    files += [folder / "params.yaml", folder / "dvc.lock", *folder.glob("metrics/*")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_kept_result_replaces_another_run_byte_for_byte_or_nothing_changes(day: Day, mini_run: Path) -> None:
    """In the clone, at the commit before the kept one, with a file that the remote never gets."""
    project, clone = day.root / "project", day.root / "elsewhere"
    log = (clone / "scratch/kept/finer-mlp/train_seed42.log").read_text().splitlines()
    assert log[-1].startswith("total_eval_time:")
    call("git", "checkout", "-q", "-f", "HEAD~1", cwd=clone)
    shutil.rmtree(clone / "artifacts")
    shutil.copytree(mini_run / paths.LOSSES.parent, clone / paths.LOSSES.parent)
    assert "there is no DVC remote" in call("pgolf", "restore", "finer-mlp", cwd=clone, code=2)
    local = clone / ".dvc/config.local"
    local.write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {day.root / 'nowhere'}\n")
    shutil.rmtree(clone / ".dvc/cache")
    assert "the remote lacks artifacts/" in call("pgolf", "restore", "finer-mlp", cwd=clone, code=2)
    assert call("git", "status", "--porcelain", "--untracked-files=no", cwd=clone) == ""
    assert (clone / paths.LOSSES).read_bytes() == (mini_run / paths.LOSSES).read_bytes()
    local.write_text(local.read_text().replace("nowhere", "store"))
    call("pgolf", "restore", "finer-mlp", cwd=clone)
    assert digests(clone) == digests(project)
    assert not (clone / paths.LOSSES).exists()  # those of the other run
    assert not (clone / paths.PACE).exists()
    (clone / paths.TRACE).write_text("mine\n")
    call("git", "checkout", "-q", "-f", "HEAD", cwd=clone)
    assert "is not what dvc.lock says" in call("pgolf", "restore", "finer-mlp", cwd=clone, code=2)
    assert (clone / paths.TRACE).read_text() == "mine\n"
