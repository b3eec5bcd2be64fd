"""Packed programs run like their sources: alone, in an empty folder, without site packages or the pipeline's tools."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgolf.errors import InputError
from pgolf.presets import apply_preset
from pgolf.sections import load_sections
from pgolf.submit.closure import ClosureError, find_module, import_closure
from pgolf.submit.defaults import SECTIONS, compact, complete
from pgolf.submit.pack_code import (
    ALLOWED,
    ENTRY,
    FORBIDDEN,
    OPTIONAL,
    optional_modules,
    pack_code,
    program_text,
    unpack_code,
)

ROOT = Path(__file__).parents[2]

FILES = {
    "prog/__init__.py": '"""A package."""\n',
    "prog/constants.py": (
        '"""Constants."""\n\nfrom typing import Final\n\nSCALE: Final = 3\n"""Documented."""\nNAME = "prog ü \\\\0"\n'
    ),
    "prog/part/__init__.py": "",
    "prog/part/config.py": (
        "from __future__ import annotations\n"
        "from collections.abc import Mapping\n"
        "from dataclasses import dataclass\n"
        "from typing import TYPE_CHECKING, Any, Literal, get_type_hints\n"
        "if TYPE_CHECKING:\n    from missing_package import Thing\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Config:\n"
        '    """Doc."""\n'
        '    size: int\n    """Documented field."""\n'
        '    kind: Literal["a", "b"] = "a"\n'
        "    names: tuple[str, ...] = ()\n"
        "    def twice(self) -> int:\n"
        '        """Doc."""\n'
        "        doubled: int = 2 * self.size\n"
        '        assert doubled >= 0, "a long message that need not ship"\n'
        "        return doubled\n"
        "def build(values: Mapping[str, Any], thing: Thing | None = None) -> Config:\n"
        "    hints = get_type_hints(Config)\n"
        "    assert set(values) <= set(hints)\n"
        "    return Config(**{k: tuple(v) if hints[k] == tuple[str, ...] else v for k, v in values.items()})\n"
    ),
    "prog/part/kernel.py": (
        "import inspect\n"
        "class constexpr: ...\n"
        "def jit(fn):\n"
        "    return inspect.getsource(fn), {k: v for k, v in fn.__annotations__.items()}\n"
        "def custom_op(fn):\n    return fn\n"
        "@jit\n"
        "def kernel(x, BLOCK: constexpr):\n    # a comment\n    y = x * BLOCK\n    return y\n"
        "class Holder:\n    def method(self):\n        return 1\n"
        "method_source = inspect.getsource(Holder.method)\n"
    ),
    "prog/optional.py": "value = 41\n",
    "prog/main.py": (
        "import json\n"
        "from . import constants\n"
        "from .part.config import build\n"
        "from prog.part import kernel\n"
        "def main(params: dict) -> None:\n"
        "    if params['optional']:\n"
        "        from prog.optional import value\n"
        "    else:\n"
        "        value = 0\n"
        "    config = build(params['config'])\n"
        "    source, annotations = kernel.kernel\n"
        "    assert params, 'never empty'\n"
        "    numbers = [constants.SCALE, constants.NAME, config.twice()]\n"
        "    shown = repr(config).partition('(')[2]\n"  # classes get other names
        "    print(json.dumps([*numbers, shown, sorted(annotations), value]))\n"
        "    assert '=x*BLOCK' in source.replace(' ', '') and 'return 1' in kernel.method_source\n"
        "    if '=x*BLOCK' not in source.replace(' ', '') or 'return 1' not in kernel.method_source:\n"
        "        raise SystemExit('no source')\n"
    ),
}
PARAMS = {"optional": True, "config": {"size": 4, "names": ["x", "ü"]}, "rate": 1e-3}

BLOCKER = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
runpy.run_path("train_gpt.py", run_name="__main__")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def run_packed(source: bytes, folder: Path) -> tuple[int, str, str]:
    folder.mkdir()
    scratch = folder.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    (folder / "train_gpt.py").write_bytes(source)
    command = [sys.executable, "-I", "-c", BLOCKER.format(blocked=set(FORBIDDEN) | {"pgolf", "stages"})]
    environment = {**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert list(scratch.iterdir()) == [], "the temporary folder is left behind"
    assert [path.name for path in folder.iterdir()] == ["train_gpt.py"]
    return done.returncode, done.stdout, done.stderr


def run_unpacked(root: Path, params: Any) -> str:
    code = f"import json; from prog.main import main; main(json.loads({json.dumps(params)!r}))"
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout


def test_the_packed_program_does_what_its_source_does(program: Path, tmp_path: Path) -> None:
    packed = pack_code("prog.main", program, PARAMS)
    status, output, errors = run_packed(packed.source, tmp_path / "empty")
    assert status == 0, errors
    assert output == run_unpacked(program, PARAMS)
    assert json.loads(output)[1:3] == ["prog ü \\0", 8]


def test_equal_input_gives_equal_bytes_and_any_change_changes_them(program: Path) -> None:
    first = pack_code("prog.main", program, PARAMS)
    assert pack_code("prog.main", program, dict(reversed(PARAMS.items()))) == first
    assert {program / name for name in first.readable} == {*import_closure(["prog.main"], program).values()}
    seen = {first.source, pack_code("prog.main", program, {**PARAMS, "rate": 2e-3}).source}
    for index, (name, text) in enumerate(FILES.items()):
        (program / name).write_text(text + f"\nprint({index})\n", "utf-8")
        seen.add(pack_code("prog.main", program, PARAMS).source)
        (program / name).write_text(text, "utf-8")
    assert len(seen) == 2 + len(FILES)
    (program / "prog/main.py").write_text(FILES["prog/main.py"] + "# a comment is free\n")
    assert pack_code("prog.main", program, PARAMS).source == first.source


def test_readable_and_counted_are_the_same_program(program: Path) -> None:
    packed = pack_code("prog.main", program, PARAMS)
    text, params = unpack_code(packed.source)
    assert params == PARAMS
    assert packed.readable == FILES
    assert program_text(packed.readable, "prog.main") == text
    assert program_text(packed.readable | {"prog/optional.py": "value = 40\n"}, "prog.main") != text


def test_every_byte_survives_the_literal_that_holds_it(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever bytes the codec gives, in whatever order, they come back from the text of the file."""
    everything = bytes(a for pair in ((x, y) for x in range(256) for y in (0, 10, 13, 34, 48, 92)) for a in pair)
    everything += b'"' + b'""""' + b"a" + b'"""\\' + b"\x007" + b'""'  # its end, whole and in part
    monkeypatch.setattr("brotli.compress", lambda blob, **settings: everything)
    source = pack_code("prog.main", program, PARAMS).source
    literal = next(node for node in ast.walk(ast.parse(source)) if node_is_data(node))
    assert literal.value.encode("latin1") == everything  # as Python reads the file
    assert len(source) < len(everything) * 2
    received: list[bytes] = []
    monkeypatch.setattr("brotli.decompress", lambda data: received.append(data) or b"b\0{}")
    assert unpack_code(source) == ("b", {})
    assert received == [everything]


def test_another_file_is_refused() -> None:
    with pytest.raises(InputError, match="no packed train_gpt"):
        unpack_code(b"print(1)")


def node_is_data(node: ast.AST) -> bool:
    """Whether a node is the literal with the compressed program."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 1000


def test_what_nothing_reads_is_not_shipped(program: Path) -> None:
    everything, _ = unpack_code(pack_code("prog.main", program, PARAMS).source)
    for gone in ("Doc", "comment", "missing_package", "long message", "never empty", "Mapping"):
        assert gone not in everything, gone
    assert re.search(r":size:\w+;kind:\w+='a';names:\w+\[\w+,\.\.\.\]", re.sub(r"\s", "", everything))  # fields
    assert "(x,BLOCK:" in everything  # Triton reads this one
    assert "->" not in everything


def test_an_excluded_module_is_left_out_and_missed_only_where_it_is_used(program: Path, tmp_path: Path) -> None:
    packed = pack_code("prog.main", program, {**PARAMS, "optional": False}, exclude={"prog.optional"})
    assert "prog/optional.py" not in packed.readable
    status, output, errors = run_packed(packed.source, tmp_path / "empty")
    assert (status, json.loads(output)[-1]) == (0, 0), errors
    lying = pack_code("prog.main", program, PARAMS, exclude={"prog.optional"})
    status, _, errors = run_packed(lying.source, tmp_path / "other")
    assert status != 0
    assert "ImportError" in errors


def test_an_excluded_module_must_not_be_imported_on_loading(program: Path) -> None:
    for text in ("from prog import optional\n", "if True:\n    from prog.optional import value\n"):
        (program / "prog/constants.py").write_text(FILES["prog/constants.py"] + text, "utf-8")
        with pytest.raises(ClosureError, match=r"`prog\.constants` line \d+ imports `prog\.optional`"):
            pack_code("prog.main", program, PARAMS, exclude={"prog.optional"})
        assert pack_code("prog.main", program, PARAMS).source


@pytest.mark.parametrize("package", [*sorted(FORBIDDEN), "requests"])
@pytest.mark.parametrize("form", ["import {}\n", "def f():\n    from {}.part import x\n"])
def test_packages_of_the_pipeline_are_refused_by_module_and_import(program: Path, package: str, form: str) -> None:
    (program / "prog/optional.py").write_text(form.format(package))
    with pytest.raises(ClosureError, match=rf"`prog\.optional` line \d imports `{package}"):
        pack_code("prog.main", program, PARAMS)
    assert pack_code("prog.main", program, PARAMS, exclude={"prog.optional"}).source


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_allowed_packages_may_be_imported(program: Path, package: str) -> None:
    (program / "prog/optional.py").write_text(f"import {package}\n")
    assert pack_code("prog.main", program, PARAMS).source


def test_an_assertion_that_assigns_is_refused() -> None:
    with pytest.raises(ClosureError, match="line 2 assigns inside an assertion"):
        program_text({"m.py": "def main(x):\n    assert (y := x)\n    return y\n"}, "m")


def test_allowed_and_forbidden_do_not_overlap() -> None:
    assert not ALLOWED & set(FORBIDDEN)


def test_optional_modules_exist_and_follow_the_parameters() -> None:
    params = load_sections(ROOT / "params.yaml").resolved()
    for section, key, value, module in (
        ("model", "token_gate", True, "pgolf.model.block_gates"),
        ("model", "mlp_gate", True, "pgolf.model.block_gates"),
        ("model", "attention", "differential", "pgolf.model.differential"),
        ("model", "attn_gate", "dense", "pgolf.model.gates"),
        ("model", "bigram", {"rows": 9}, "pgolf.model.hash_embedding"),
        ("model", "trigram", {"rows": 9}, "pgolf.model.hash_embedding"),
        ("model", "parallel", "lanes", "pgolf.model.lanes"),
        ("model", "loop_pos", "normal", "pgolf.model.loop_position"),
        ("model", "activation", "swiglu", "pgolf.model.mlp_variants"),
        ("model", "mlp_rank", 0.5, "pgolf.model.mlp_variants"),
        ("model", "mlp_blocks", 4, "pgolf.model.mlp_variants"),
        ("model", "multi_token", {"heads": 1}, "pgolf.model.multi_token"),
        ("model", "norm_pct", 0.99, "pgolf.model.norm_pct"),
        ("model", "init", "overtone", "pgolf.model.overtone"),
        ("model", "smear", "window", "pgolf.model.smear"),
        ("model", "smear", "raw_vector", "pgolf.model.smear_vector"),
        ("model", "value_embed", {"last": 2}, "pgolf.model.value_embedding"),
        ("model", "value_residual", "gated", "pgolf.model.value_residual"),
        ("model", "rope_scaling", "yarn", "pgolf.model.yarn"),
        ("train", "batches", "packed", "pgolf.data.packed_documents"),
        ("train", "batches", "sequential", "pgolf.data.sequential_rows"),
        ("train", "batches", "coprime", "pgolf.data.coprime_rows"),
        ("train", "average", "lawa", "pgolf.train.snapshots"),
        ("train", "choose_batches", 4, "pgolf.train.choose"),
        ("train", "muon", {"mousse": True, "huber": None}, "pgolf.train.mousse"),
        ("train", "muon", {"mousse": False, "huber": 3.0}, "pgolf.train.huber"),
        ("train", "schedule", "cosine", "pgolf.train.warmdowns"),
        ("train", "token_fraction", 0.5, "pgolf.train.selective"),
        ("train", "qat", {"below": 0.15, "last": 0.0}, "pgolf.train.qat"),
        ("train", "finish", {"replay_batches": 0, "distill_steps": 50}, "pgolf.train.finishing"),
        ("evaluate", "ttt", "chunk", "pgolf.evaluate.chunk_ttt"),
        ("evaluate", "seconds", 600.0, "pgolf.evaluate.pace"),
        ("evaluate", "cache", {"sharpness": 90.0}, "pgolf.evaluate.neural_cache"),
        ("evaluate", "lora", {"optimizer": "adamw", "carry": 0.5}, "pgolf.evaluate.carry"),
    ):
        assert module in optional_modules(params)
        changed = params | {section: params[section] | {key: value}}
        freed = optional_modules(params) - optional_modules(changed)
        assert {name for name in freed if find_module(name, ROOT)} == {module}
        assert optional_modules(changed) < optional_modules(params)
    for form, modules in (
        ("lora", {"document_ttt", "warm_up"}),
        ("phased", {"chunk_ttt", "document_ttt", "shared_ttt", "warm_up"}),
        ("cached", {"cached_ttt", "document_ttt"}),
    ):
        changed = optional_modules(params | {"evaluate": params["evaluate"] | {"ttt": form}})
        assert optional_modules(params) - changed == {f"pgolf.evaluate.{name}" for name in modules}
    for form, modules in (("merge", {"lanes", "lanes_merge"}), ("lanes_sequential", {"lanes", "lanes_sequential"})):
        changed = optional_modules(params | {"model": params["model"] | {"parallel": form}})
        assert optional_modules(params) - changed == {f"pgolf.model.{name}" for name in modules}
    for module in OPTIONAL:
        path = find_module(module, ROOT)
        if path is None:  # a function
            path = find_module(module.rpartition(".")[0], ROOT)
            assert path is not None, f"{module} of OPTIONAL does not exist"
            assert f"\ndef {module.rpartition('.')[2]}(" in path.read_text(), module


def test_the_last_record_packs_into_forty_thousand_bytes(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    apply_preset(tmp_path / "params.yaml", "record-1855", folder=ROOT / "presets")
    sections = load_sections(tmp_path / "params.yaml").resolved()
    params = {name: sections[name] for name in SECTIONS} | {"vocab_size": 8192}
    assert params["compress"]["codec"] == "auto"
    assert len(pack_code(ENTRY, ROOT, params, exclude=optional_modules(params)).source) <= 40_000


def test_defaults_do_not_ship_and_come_back() -> None:
    params = load_sections(ROOT / "params.yaml").resolved()
    shipped = {name: params[name] for name in SECTIONS} | {"vocab_size": 7}
    short = compact(shipped)
    assert complete(short) == shipped
    assert short["vocab_size"] == 7
    assert "rope_base" not in short["model"]
    assert short["model"]["layers"] == params["model"]["layers"]
    changed = shipped | {"train": shipped["train"] | {"embed": {"lr": 0.03, "weight_decay": 0.02}}}
    assert compact(changed)["train"]["embed"] == {"lr": 0.03}  # 0.085 is the default of this use, 0.02 of the class
    assert complete(compact(changed)) == changed
