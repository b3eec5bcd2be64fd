"""`dvc.yaml` names for every stage exactly the source files that can change its bytes.

One file too many and a comment retrains the model; one too few and an edit is silently ignored.
"""

import ast
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pgolf.submit.closure import import_closure

ROOT = Path(__file__).parents[2]

CANNOT_AFFECT_BYTES = {
    "pgolf.budget": "measures time: seconds go into metrics and the trace, which nothing but pictures reads",
    "pgolf.console": "prints",
    "pgolf.errors": "the exception class of messages to users: either a stage stops or nothing changes",
    "pgolf.paths": "says where files lie: one that is not where dvc.yaml names it stops the stage",
    "pgolf.preflight": "checks before the start: either a stage stops or nothing changes",
}
"""Module -> why no stage depends on it; what it imports does not count through it either."""

COUNTED = {"verify-size": "pgolf.runtime"}
"""Stage -> entry whose whole closure it reads as data: every byte of the packed code counts, allow-list or not."""


def expected_sources(stage: str, root: Path) -> list[str]:
    """Repository paths of the .py files that `stage` must depend on, sorted."""
    files = import_closure([f"stages.{stage.replace('-', '_')}"], root, stop=CANNOT_AFFECT_BYTES)
    paths = {path for path in files.values() if _has_code(path) and path != root / "pgolf/__init__.py"}
    if stage in COUNTED:
        paths |= set(import_closure([COUNTED[stage]], root).values())
    return sorted(path.relative_to(root).as_posix() for path in paths)


def problems(root: Path) -> list[str]:
    """What is wrong with the stages of `root/dvc.yaml`."""
    wrong = []
    stages: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text())["stages"]
    for stage, body in stages.items():
        command = f"python -m stages.{stage.replace('-', '_')}"
        if body["cmd"] != command:
            wrong.append(
                f"{stage}: cmd is {body['cmd']!r}, expected {command!r} (its text is part of the stage's hash)"
            )
        deps = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in body.get("deps", [])]
        sources = sorted(path for path in deps if path.endswith(".py"))
        wrong += [
            f"{stage}: depends on the whole folder {path}; name the files"
            for path in deps
            if path.partition("/")[0] in ("pgolf", "stages") and (root / path).is_dir()
        ]
        expected = expected_sources(stage, root)
        if sources != expected:
            extra, missing = sorted(set(sources) - set(expected)), sorted(set(expected) - set(sources))
            wrong.append(
                f"{stage}: the .py deps differ from what it imports (missing {missing}, not imported {extra}, "
                f"repeated {sorted({path for path in sources if sources.count(path) > 1})}); paste:\n"
                + "\n".join(f"      - {path}" for path in expected)
            )
    return wrong


def _has_code(path: Path) -> bool:
    """Whether a file holds more than docstrings; an `__init__.py` without code cannot change anything."""
    body = ast.parse(path.read_bytes()).body
    return not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_every_stage_depends_on_exactly_what_it_imports() -> None:
    assert not problems(ROOT), "\n\n" + "\n\n".join(problems(ROOT))


FILES = {
    "stages/__init__.py": "",
    "stages/one.py": "import pgolf.console, pgolf.errors\nfrom pgolf.model import gpt\n",
    "stages/verify_size.py": "import pgolf.config\n",
    "pgolf/__init__.py": "__version__ = '1'\n",
    "pgolf/console.py": "import pgolf.config\n",
    "pgolf/errors.py": "x = 1\n",
    "pgolf/config.py": "import pgolf.errors\n",
    "pgolf/model/__init__.py": '"""Docstring only."""\n',
    "pgolf/model/gpt.py": "x = 1\n",
    "pgolf/runtime.py": "import pgolf.errors\n",
}
GOOD = """\
stages:
  one:
    cmd: python -m stages.one
    deps:
      - data/docs.jsonl
      - pgolf/model/gpt.py
      - stages/one.py
  verify-size:
    cmd: python -m stages.verify_size
    deps:
      - pgolf/__init__.py
      - pgolf/config.py
      - pgolf/errors.py
      - pgolf/runtime.py
      - stages/verify_size.py
"""


def write(root: Path, text: str) -> Path:
    for name, source in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    (root / "dvc.yaml").write_text(text)
    return root


def test_a_right_file_is_accepted(tmp_path: Path) -> None:
    assert problems(write(tmp_path, GOOD)) == []


def test_every_kind_of_mistake_is_seen(tmp_path: Path) -> None:
    line = "      - pgolf/model/gpt.py\n"
    changes = {
        "missing ['pgolf/model/gpt.py']": (line, ""),
        "not imported ['pgolf/console.py']": (line, line + "      - pgolf/console.py\n"),
        "repeated ['pgolf/model/gpt.py']": (line, line + line),
        "whole folder pgolf/model": (line, line + "      - pgolf/model\n"),
        "expected 'python -m stages.one'": ("stages.one", "stages.one --steps ${train.steps}"),
        "expected 'python -m stages.verify_size'": ("stages.verify_size", "stages.verify-size"),
        "missing ['pgolf/errors.py']": ("      - pgolf/errors.py\n", ""),
    }
    for message, (old, new) in changes.items():
        (found,) = problems(write(tmp_path, GOOD.replace(old, new, 1)))
        assert message in found
    (found,) = problems(write(tmp_path, GOOD.replace(line, "")))
    assert found.endswith("paste:\n      - pgolf/model/gpt.py\n      - stages/one.py")


def test_the_allow_list_is_alive() -> None:
    """A module that no stage reaches needs no exemption."""
    entries = [f"stages.{path.stem}" for path in sorted((ROOT / "stages").glob("[!_]*.py"))]
    unused = set(CANNOT_AFFECT_BYTES) - set(import_closure(entries, ROOT))
    assert not unused, f"remove from CANNOT_AFFECT_BYTES: {sorted(unused)}"
