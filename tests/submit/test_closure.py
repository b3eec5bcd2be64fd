"""The import closure of small programs on disk, one trap each."""

from pathlib import Path

import pytest

from pgolf.submit.closure import ClosureError, import_closure, third_party


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        {
            "app/__init__.py": "import app.always\n",
            "app/always.py": "import json\n",
            "app/main.py": (
                "from typing import TYPE_CHECKING\n"
                "import numpy.linalg as la\n"
                "from app.sub import leaf, constant\n"
                "from . import sibling\n"
                "if TYPE_CHECKING:\n    from app.typed import Thing\n    import pandas\nelse:\n    import app.untyped\n"
                "def run():\n    from app.lazy import f\n    import torch\n    return f()\n"
            ),
            "app/sub/__init__.py": "constant = 1\n",
            "app/sub/leaf.py": "import app.main\nfrom ..sibling import x\n",  # a cycle
            "app/sibling.py": "x = 1\n",
            "app/lazy.py": "import torch.nn, brotli\nf = int\n",
            "app/typed.py": "",
            "app/untyped.py": "import importlib\nm = importlib.import_module('app.dynamic')\n",
            "app/dynamic.py": "",
            "app/unused.py": "import typer\n",
        },
    )


def test_everything_that_can_run_and_nothing_else(root: Path) -> None:
    files = import_closure(["app.main"], root)
    assert list(files) == [
        "app",
        "app.always",
        "app.dynamic",
        "app.lazy",
        "app.main",
        "app.sibling",
        "app.sub",
        "app.sub.leaf",
        "app.untyped",
    ]
    assert files["app.sub"] == root / "app/sub/__init__.py"
    assert files["app.main"] == root / "app/main.py"


def test_stopped_modules_are_neither_reported_nor_followed(root: Path) -> None:
    files = import_closure(["app.main"], root, stop={"app.untyped", "app.sub"})
    assert set(files) == {"app", "app.always", "app.lazy", "app.main", "app.sibling"}


def test_third_party_by_when_it_is_imported(root: Path) -> None:
    eager, lazy = third_party(import_closure(["app.main"], root))
    assert eager == {"numpy", "torch", "brotli"}
    assert lazy == set()
    eager, lazy = third_party(import_closure(["app.main"], root, stop={"app.lazy"}))
    assert (eager, lazy) == ({"numpy"}, {"torch"})


def test_a_missing_module_is_named_with_its_importer(root: Path) -> None:
    write(root, {"app/wrong.py": "import app.nothing\n"})
    with pytest.raises(ClosureError, match=r"app\.wrong imports `app\.nothing`"):
        import_closure(["app.wrong"], root)


def test_a_computed_import_is_refused(root: Path) -> None:
    write(root, {"app/wrong.py": "import importlib\nfor n in 'ab':\n    importlib.import_module(f'app.{n}')\n"})
    with pytest.raises(ClosureError, match=r"`app\.wrong` line 3 imports a computed name"):
        import_closure(["app.wrong"], root)


def test_nothing_is_executed(root: Path) -> None:
    write(root, {"app/bomb.py": "raise SystemExit('imported')\n"})
    assert "app.bomb" in import_closure(["app.bomb"], root)
