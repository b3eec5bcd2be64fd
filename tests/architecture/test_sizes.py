"""Modules and functions stay small enough to read in one go."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULE_LINES, STAGE_LINES, FUNCTION_LINES = 400, 80, 60


def too_long(root: Path) -> list[str]:
    """Every module and function over its limit, longest first."""
    found: list[tuple[int, str]] = []
    for folder, limit in (("pgolf", MODULE_LINES), ("stages", STAGE_LINES)):
        for path in sorted((root / folder).rglob("*.py")):
            text, where = path.read_text("utf-8"), path.relative_to(root).as_posix()
            lines = len(text.splitlines())
            if lines > limit:
                found.append((lines, f"{where}: {lines} lines, at most {limit}"))
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    if lines > FUNCTION_LINES:
                        found.append((lines, f"{where}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"))
    return [line for _, line in sorted(found, key=lambda item: -item[0])]


def test_nothing_is_too_long() -> None:
    assert not too_long(ROOT), "\n".join(["too long:", *too_long(ROOT)])


def test_limits_are_exact(tmp_path: Path) -> None:
    for folder in ("pgolf", "stages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pgolf/fits.py").write_text("x = 1\n" * 400)
    (tmp_path / "stages/fits.py").write_text("def f():\n" + "    x = 1\n" * 59 + "x = 1\n" * 20)
    assert too_long(tmp_path) == []
    (tmp_path / "pgolf/long.py").write_text("x = 1\n" * 401)
    (tmp_path / "stages/long.py").write_text("def f():\n" + "    x = 1\n" * 60 + "x = 1\n" * 20)
    assert too_long(tmp_path) == [
        "pgolf/long.py: 401 lines, at most 400",
        "stages/long.py: 81 lines, at most 80",
        "stages/long.py: f has 61 lines, at most 60",
    ]
