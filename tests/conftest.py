"""Shared fixtures: a working copy of the repository, and one finished run of the `mini` preset."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pgolf.data.documents import read_documents

ROOT = Path(__file__).parents[1]
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "140"}


def call(*command: str, cwd: Path, code: int = 0) -> str:
    """Run a command in a folder, check its exit code, return what it printed."""
    done = subprocess.run(command, cwd=cwd, env=ENV, text=True, capture_output=True, timeout=500)
    printed = done.stdout + done.stderr
    assert done.returncode == code, f"{' '.join(command)} exited with {done.returncode}:\n{printed}"
    return printed


def copy_repository(target: Path) -> Path:
    """The files of the working tree that git knows or would add."""
    listed = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def shrink(folder: Path) -> None:
    """Make a run of seconds: the `mini` preset on the first documents of the bundled corpus."""
    (folder / "data/tiny").mkdir()
    for name, count in (("docs", 400), ("val", 25)):
        documents = itertools.islice(read_documents(folder / f"data/sample/{name}.jsonl.zst"), count)
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (folder / f"data/tiny/{name}.jsonl").write_text("".join(lines))
    params = folder / "params.yaml"
    text = params.read_text().replace("data/sample/", "data/tiny/").replace(".jsonl.zst", ".jsonl")
    params.write_text(text)
    call("pgolf", "preset", "use", "mini", cwd=folder)


@pytest.fixture(scope="session")
def mini_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole chain has run with the `mini` preset, once for all workers; read only."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "mini"
    with FileLock(shared / "mini.lock"):
        if not folder.is_dir():
            making = copy_repository(tmp_path_factory.mktemp("making"))
            shrink(making)
            call("pgolf", "run", cwd=making)
            making.rename(folder)
    return folder


@pytest.fixture
def workspace(mini_run: Path, tmp_path: Path) -> Path:
    """A private copy of the finished run, to break things in."""
    return Path(shutil.copytree(mini_run, tmp_path / "run", symlinks=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole chains first: they are long, and at the end one worker would wait for another's."""
    slow = ("pipeline", "lab")
    items.sort(key=lambda item: item.path.relative_to(ROOT / "tests").parts[0] not in slow)
