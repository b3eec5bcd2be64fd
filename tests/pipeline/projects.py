"""A finished tiny run as a git and DVC project, without running it again."""

import re
import shutil
from pathlib import Path

from conftest import call


def identify(folder: Path) -> Path:
    """Give a clone somebody who commits."""
    call("git", "config", "user.email", "test@example.invalid", cwd=folder)
    call("git", "config", "user.name", "test", cwd=folder)
    return folder


def ran(printed: str) -> list[str]:
    """Stages that DVC ran or would run."""
    return re.findall(r"Running stage '([\w-]+)'", printed)


def commit(folder: Path, message: str) -> None:
    call("git", "add", "-A", cwd=folder)
    call("git", "commit", "-qm", message, cwd=folder)


def as_project(run: Path, folder: Path) -> Path:
    """A copy of the run as if `dvc repro` had just made it and everything were committed."""
    shutil.copytree(run, folder, symlinks=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    call("git", "init", "-q", "-b", "main", cwd=folder)
    identify(folder)
    call("dvc", "commit", "-f", cwd=folder)
    commit(folder, "a finished run")
    return folder
