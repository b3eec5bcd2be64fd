"""Imports go one way (LAYERS), and a submission needs none of the pipeline's tools."""

import subprocess
import sys
from pathlib import Path

from pgolf.submit.closure import first_party, import_closure, imports, third_party
from pgolf.submit.pack_code import ALLOWED, FORBIDDEN, check_closure

ROOT = Path(__file__).parents[2]

BASE = {"errors", "config", "budget", "device", "ranks"}
BELOW_RUNTIME = BASE | {"kernels", "model", "data", "codec", "quant", "train", "evaluate"}
BELOW_SUBMIT = BELOW_RUNTIME | {"artifacts", "console", "rules", "runtime"}

LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "budget": {"errors"},
    "device": set(),
    "ranks": {"errors"},
    "launch": set(),
    "paths": set(),
    "params": {"errors", "config"},
    "console": {"errors"},
    "artifacts": {"errors", "config"},
    "rules": {"errors", "config"},
    "kernels": BASE,
    "model": BASE | {"kernels"},
    "data": BASE | {"artifacts"},
    "codec": BASE | {"model", "data"},
    "quant": BASE | {"kernels", "model", "data", "codec"},  # fitting to the cap asks the codec for sizes
    "train": BASE
    | {"model", "data", "kernels", "artifacts"},  # artifacts: resumable states, outside the runtime closure
    "evaluate": BASE | {"model", "data", "kernels"},
    "runtime": BELOW_RUNTIME,
    "checkpoint_file": BASE | {"artifacts", "model"},
    "checkpoint_parts": BASE | {"artifacts", "model", "checkpoint_file"},
    "adopt": BASE | {"artifacts", "data", "model", "quant", "params", "paths", "presets"},
    "adopted": BASE | {"artifacts", "checkpoint_file", "data", "model", "paths", "train"},
    "runs": {"errors", "config", "artifacts", "params", "paths"},
    "submit": BELOW_SUBMIT | {"params", "paths", "runs"},
    "report": BELOW_SUBMIT | {"submit", "paths", "runs"},
    "keep": BELOW_SUBMIT | {"submit", "params", "paths", "runs"},
    "run_commands": BELOW_SUBMIT | {"submit", "report", "runs", "keep"},
    "bench": BELOW_SUBMIT | {"launch", "paths", "report", "sections"},
    "sections": BELOW_SUBMIT | {"submit", "params"},
    "audit": BELOW_SUBMIT | {"submit", "params", "paths", "presets", "sections"},
    "plan": BELOW_RUNTIME | {"sections"},
    "presets": {"errors", "config", "artifacts", "params", "sections"},
    "preflight": {"errors", "plan", "sections"},
    "doctor": BELOW_SUBMIT | {"params", "paths", "plan", "preflight", "sections"},
    "reference": {"config", "errors", "sections"},
    "sweep": BELOW_SUBMIT | {"params", "paths", "sections", "presets", "checkpoint_file", "report", "submit"},
    "lab": BELOW_SUBMIT | {"params", "paths", "sections", "presets", "checkpoint_file", "report", "submit", "sweep"},
    "cli": BELOW_SUBMIT
    | {"submit", "report", "paths", "plan", "sections", "presets", "preflight", "stages"}
    | {"checkpoint_parts", "adopt", "bench", "run_commands", "audit", "sweep", "lab", "doctor", "reference"},
}
"""Part of pgolf -> what it may import besides itself. `pgolf` itself (the version) is open to all."""


def part_of(module: str) -> str:
    """`pgolf.model.gpt` -> `model`; `stages.train` -> `stages`; `pgolf` -> `pgolf`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pgolf" and len(parts) > 1 else parts[0]


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wrong_imports(root: Path) -> list[str]:
    """Every import inside pgolf and stages that goes against LAYERS."""
    wrong = []
    for path in sorted([*root.glob("pgolf/**/*.py"), *root.glob("stages/**/*.py")]):
        name = module_name(path, root)
        own = part_of(name)
        if own not in LAYERS and own not in ("pgolf", "stages"):
            wrong.append(f"{name}: `{own}` has no layer; add it to LAYERS")
            continue
        # Stages are thin and on top: they may import all of pgolf but its command line.
        allowed = set(LAYERS) - {"cli"} if own == "stages" else LAYERS.get(own, set())
        for imported in imports(name, path):
            for target in first_party(imported, root):
                if part_of(target) not in allowed | {own, "pgolf"}:
                    wrong.append(f"{name} line {imported.line} imports {target}")
    return wrong


def test_imports_go_one_way() -> None:
    assert not wrong_imports(ROOT), "\n".join(["imports against the layers:", *wrong_imports(ROOT)])


def test_an_import_upwards_is_seen(tmp_path: Path) -> None:
    files = {
        "stages/__init__.py": "",
        "stages/train.py": "import pgolf.train.loop\n",
        "pgolf/__init__.py": "",
        "pgolf/model/__init__.py": "",
        "pgolf/model/gpt.py": "def f():\n    from pgolf.train import loop\n",
        "pgolf/train/__init__.py": "from pgolf.model import gpt\n",
        "pgolf/train/loop.py": "import stages.train\nfrom pgolf import submit\n",
        "pgolf/submit/__init__.py": "from pgolf.train import loop\n",
        "pgolf/novel.py": "",
        "pgolf/cli.py": "import stages.train\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert wrong_imports(tmp_path) == [
        "pgolf.model.gpt line 2 imports pgolf.train",
        "pgolf.model.gpt line 2 imports pgolf.train.loop",
        "pgolf.novel: `novel` has no layer; add it to LAYERS",
        "pgolf.train.loop line 1 imports stages.train",
        "pgolf.train.loop line 2 imports pgolf.submit",
    ]


def test_the_layers_have_no_cycle() -> None:
    done: set[str] = {"stages"}
    while ready := {part for part, below in LAYERS.items() if part not in done and below - {part} <= done}:
        done |= ready
    assert set(LAYERS) <= done, f"in a cycle: {sorted(set(LAYERS) - done)}"


def test_the_runtime_closure_imports_only_what_a_submission_may() -> None:
    files = import_closure(["pgolf.runtime"], ROOT)
    check_closure(files, ROOT)
    eager, lazy = third_party(files)
    assert eager | lazy <= ALLOWED
    assert not (eager | lazy) & set(FORBIDDEN)
    assert {"torch", "numpy"} <= eager | lazy, "an empty closure proves nothing"
    assert not [
        name for name in files if part_of(name) in ("cli", "submit", "report", "artifacts", "console", "stages")
    ]


def test_the_runtime_loads_where_the_tools_of_the_pipeline_are_not_installed() -> None:
    files = import_closure(["pgolf.runtime"], ROOT)
    loaded = {
        name: {part_of(target) for each in imports(name, path) if not each.lazy for target in first_party(each, ROOT)}
        for name, path in files.items()
    }
    # Kernels, and what imports them at once, need Triton, which not every machine has.
    modules = [name for name, parts in loaded.items() if "kernels" not in parts | {part_of(name)}]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(FORBIDDEN)!r}))\n"  # None makes an import fail
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
