"""No traces of one machine in the repository, and no pickle where artifacts are read or written."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|opt|work|mnt|Users)/\w")
PACKAGE_INDEX = re.compile(
    r"\bpypi\.\w|\bpythonhosted\.|https?://[^\s\"']+/simple\b|index[-_]url(?![= \"]+https://download\.pytorch\.org/)"
)
FOREIGN_SECTION = re.compile(r"\b[A-F]\.\d|\b[Ss]pec \w?\.?\d")
"""Sections of documents that are not here say nothing to a reader."""
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLE_CALLS = {"torch.load", "torch.save", "numpy.save", "np.save"}
WEIGHTS_ONLY = "torch.load"
"""With `weights_only=True` it builds tensors and plain containers and runs no code; published checkpoints need it."""


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in sorted(set(listed.split("\0")) - {""}) if (path := ROOT / name).is_file()]


def matches(pattern: re.Pattern[str], text: str) -> list[int]:
    """Numbers of the lines that match."""
    return [number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def pickles(source: str) -> list[int]:
    """Numbers of the lines that import or call something that pickles."""
    found = []
    nodes = list(ast.walk(ast.parse(source)))
    harmless = {id(node.func) for node in nodes if isinstance(node, ast.Call) and _weights_only(node)}
    for node in nodes:
        if isinstance(node, ast.Import):
            bad = any(alias.name.partition(".")[0] in PICKLE_MODULES for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            bad = (node.module or "").partition(".")[0] in PICKLE_MODULES or bool(names & PICKLE_CALLS)
        elif isinstance(node, ast.Attribute):
            bad = ast.unparse(node) in PICKLE_CALLS and id(node) not in harmless
        else:
            bad = isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
        if bad:
            found.append(getattr(node, "lineno", 0))
    return sorted(found)


def _weights_only(call: ast.Call) -> bool:
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func) == WEIGHTS_ONLY and arguments.get("weights_only") == "True"


@pytest.mark.parametrize(
    "pattern", [MACHINE_PATH, PACKAGE_INDEX, FOREIGN_SECTION], ids=["machine path", "package index", "section"]
)
def test_no_file_names_what_others_do_not_have(pattern: re.Pattern[str]) -> None:
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for path in files:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # binary
        found += [f"{path.relative_to(ROOT)}:{number}" for number in matches(pattern, text)]
    assert not found, found


def test_nothing_pickles() -> None:
    paths = sorted([*(ROOT / "pgolf").rglob("*.py"), *(ROOT / "stages").rglob("*.py")])
    assert paths
    found = [f"{path.relative_to(ROOT)}:{line}" for path in paths for line in pickles(path.read_text("utf-8"))]
    assert not found, found


def test_the_patterns_see_what_they_should() -> None:
    slash = "/"
    for text in (f"{slash}home/me/x", f'"{slash}opt/venv"', f"cd {slash}root/x", f"={slash}Users/x"):
        assert matches(MACHINE_PATH, text), text
    for text in ("~/work/x", "a/work/x", "https://example.org/home/x", "../opt/x", "/tmp", "home/x"):
        assert not matches(MACHINE_PATH, text), text
    dot = "."
    for text in (
        f"https://pypi{dot}org/p",
        f"https://a{dot}b/c/" + "simple",
        f"https://files.pythonhosted{dot}org/x",
        "--index" + "-url http://a/b",
    ):
        assert matches(PACKAGE_INDEX, text), text
    for text in ("--index" + "-url https://download.pytorch.org/whl/cpu", "the package index", "https://a.b/simplex"):
        assert not matches(PACKAGE_INDEX, text), text
    for text in (f"see E{dot}2", f"D{dot}7 of PR 1855", f"(spec B{dot}12)", "Spec" + " 4.8"):
        assert matches(FOREIGN_SECTION, text), text
    for text in ("C1, C2", "F1.5", "PR 1855", "1E.5", "specified 4", "A.b"):
        assert not matches(FOREIGN_SECTION, text), text


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\nx = torch.load('x')",
        "from torch import save",
        "f = torch.save",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)",
        "f(weights_only=True, g=torch.load)",
        "np.load('x', allow_pickle=True)",
        "np.save('x', y)",
    ],
)
def test_every_way_to_pickle_is_seen(source: str) -> None:
    assert pickles(source)
    assert not pickles("x = torch.load(y, map_location=z, weights_only=True)")
    assert not pickles('"""No pickle, no torch.load."""\nx.load(y)\nnp.load("x", allow_pickle=False)\n')
