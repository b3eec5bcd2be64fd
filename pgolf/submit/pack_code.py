"""The runtime closure as one `train_gpt.py`: the code bytes that count against the 16,000,000.

Every module that the entry reaches is minified (the options of PR 1855), joined with
the resolved parameters, compressed, and wrapped in four lines that unpack it into a temporary folder and run it
there: Triton and `inspect` need real source files, so executing a string would not do. The compressed bytes stand in
the file as they are, one character of the declared encoding latin-1 each (PEP 263); only the five that a string literal
cannot hold are escaped, which costs 3 percent where base85 costs 25. What is counted is what ships, and equal input
gives equal bytes.
"""

import ast
import functools
import json
import lzma
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import brotli
import python_minifier

from pgolf.config import canonical
from pgolf.errors import InputError
from pgolf.submit.closure import (
    ClosureError,
    first_party,
    import_closure,
    imports,
    is_type_checking,
    third_party,
    within,
)

ALLOWED = frozenset(
    {
        "brotli",
        "constriction",
        "flash_attn",  # FlashAttention 2, and 4 as flash_attn.cute
        "flash_attn_interface",  # FlashAttention 3
        "numpy",
        "sentencepiece",
        "torch",
        "triton",
        "zstandard",
    }
)
"""External packages that a submission may import."""

FORBIDDEN = {
    "dvc": "DVC runs the stages from outside",
    "huggingface_hub": "a submission runs offline",
    "matplotlib": "plots are not part of a submission",
    "rich": "progress belongs to pgolf.console",
    "ruamel": "a submission carries its parameters resolved",
    "safetensors": "stage artifacts are not shipped",
    "typer": "command lines belong to stages/ and pgolf.cli",
}
"""Packages of the pipeline that must never reach a submission, and why; whatever is not in ALLOWED is refused too."""


def _model(needed: Callable[[Mapping[str, Any]], bool]) -> Callable[[Mapping[str, Any]], bool]:
    """A condition on the section `model`."""
    return lambda params: needed(params["model"])


OPTIONAL: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "pgolf.codec.entropy": lambda params: params["compress"]["codec"] in ("auto", "gauss"),
    "pgolf.data.coprime_rows": lambda params: params["train"]["batches"] == "coprime",
    "pgolf.data.packed_documents": lambda params: params["train"]["batches"] == "packed",
    "pgolf.data.prefetch": lambda params: params["train"]["prefetch"] > 0,
    "pgolf.data.sequential_rows": lambda params: params["train"]["batches"] == "sequential",
    "pgolf.model.block_gates": _model(lambda model: model["mlp_gate"] or model["token_gate"]),
    "pgolf.model.differential": _model(lambda model: model["attention"] == "differential"),
    "pgolf.model.gates": _model(lambda model: model["attn_gate"] != "none"),
    "pgolf.model.hash_embedding": _model(lambda model: model["bigram"]["rows"] or model["trigram"]["rows"]),
    "pgolf.model.lanes": _model(lambda model: model["parallel"] in ("lanes", "lanes_sequential", "merge")),
    "pgolf.model.lanes_merge": _model(lambda model: model["parallel"] == "merge"),
    "pgolf.model.lanes_sequential": _model(lambda model: model["parallel"] == "lanes_sequential"),
    "pgolf.model.loop_position": _model(lambda model: model["loop_pos"] != "none"),
    "pgolf.model.mlp_variants": _model(
        lambda model: model["activation"] != "leaky_relu2" or (model["mlp_rank"], model["mlp_blocks"]) != (1, 1)
    ),
    "pgolf.model.multi_token": _model(lambda model: model["multi_token"]["heads"] > 0),
    "pgolf.model.norm_pct": _model(lambda model: model["norm_pct"] < 1),
    "pgolf.model.overtone": _model(lambda model: model["init"] == "overtone"),
    "pgolf.model.smear": _model(lambda model: model["smear"] == "window"),
    "pgolf.model.smear_vector": _model(lambda model: model["smear"] in ("vector", "raw_vector")),
    "pgolf.model.value_embedding": _model(lambda model: model["value_embed"]["last"] > 0),
    "pgolf.model.value_residual": _model(lambda model: model["value_residual"] != "none"),
    "pgolf.model.yarn": _model(lambda model: model["rope_scaling"] == "yarn"),
    "pgolf.quant.canonical": lambda params: params["quantize"]["canonical"],
    "pgolf.train.choose": lambda params: params["train"]["choose_batches"] > 0,
    "pgolf.train.finishing": lambda params: any(
        params["train"]["finish"][key] for key in ("replay_batches", "distill_steps")
    ),
    "pgolf.train.qat": lambda params: any(params["train"]["qat"][key] for key in ("below", "last")),
    "pgolf.train.snapshots": lambda params: params["train"]["average"] in ("swa", "tight_swa", "lawa"),
    "pgolf.evaluate.chunk_ttt": lambda params: params["evaluate"]["ttt"] == "chunk",
    # pgolf.data.shuffled_rows is always needed: calibration draws from it.
}
"""Module -> whether these parameters reach it. Its importers must import it inside the function that uses it."""

READS_ANNOTATIONS = frozenset(
    {"constexpr", "custom_op", "infer_schema", "signature", "singledispatch", "triton", "__annotations__"}
)
"""A module that mentions one of these keeps its function annotations: `tl.constexpr` and operator schemas are read
from them at run time."""

TYPING = frozenset({"typing", "collections.abc"})
"""Modules whose imports may go once the annotations that used them are gone; importing them has no other effect."""

Codec = Literal["brotli", "lzma"]

WRAPPER = """\
#coding:latin1
import {codec},importlib,json,pathlib,sys,tempfile;d=tempfile.TemporaryDirectory();*p,q={codec}.decompress(\
"{data}".encode("latin1")).decode().split("\\0")
for n,s in zip(p[::2],p[1::2]):f=pathlib.Path(d.name,n);f.parent.mkdir(parents=True,exist_ok=True);\
f.write_bytes(s.encode())
if __name__=="__main__":sys.path.insert(0,d.name);importlib.import_module("{entry}").main(json.loads(q))
"""
ESCAPES: dict[str, str | int | None] = {"\0": "\\x00", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
"""What a literal in double quotes cannot hold; Python, editors and git would also change line ends."""


@dataclass(frozen=True, slots=True)
class PackedCode:
    """A packed program."""

    source: bytes
    """The `train_gpt.py` to ship; its length is `bytes_code`."""
    modules: dict[str, int]
    """Module name -> bytes after minifying, before compression."""
    readable: dict[str, str]
    """Path -> original source text of everything inside, for the submission folder."""


def optional_modules(params: Mapping[str, Any]) -> set[str]:
    """The modules of OPTIONAL that `params` do not reach: what `pack_code` should exclude."""
    return {module for module, needed in OPTIONAL.items() if not needed(params)}


def pack_code(
    entry: str, root: Path, params: Mapping[str, Any], *, exclude: Collection[str] = (), codec: Codec = "brotli"
) -> PackedCode:
    """Pack the closure of module `entry`, whose `main(params)` the packed file runs.

    Raises ClosureError for an external package outside ALLOWED, and for an excluded module that is imported when its
    importer is loaded (the packed program would not start).
    """
    assert not within(entry, exclude), f"the entry `{entry}` cannot be excluded"
    files = import_closure([entry], root, stop=exclude, packages={entry.partition(".")[0]})
    check_closure(files, root, exclude)
    readable = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files.values()}
    minified = {path: minify(source, path) for path, source in readable.items()}
    blob = "\0".join([*(part for item in minified.items() for part in item), canonical(params)]).encode()
    data = _compress(blob, codec).decode("latin1").translate(str.maketrans(ESCAPES))
    modules = {name: len(source.encode()) for name, source in zip(files, minified.values(), strict=True)}
    source = WRAPPER.format(codec=codec, data=data, entry=entry).encode("latin1")
    return PackedCode(source=source, modules=modules, readable=readable)


def unpack_code(source: bytes) -> tuple[dict[str, str], Any]:
    """Path -> minified text and the parameters inside a packed file, read without running it.

    With `minify` over `PackedCode.readable` it proves that the readable and the counted program are the same one.
    """
    match = re.search(r'(brotli|lzma)\.decompress\(("(?:[^"\\\n]|\\.)*")', source.decode("latin1"))
    if match is None:
        raise InputError("this is no packed train_gpt.py of this version: run `pgolf verify-size` again")
    codec, data = cast(Codec, match[1]), ast.literal_eval(match[2]).encode("latin1")
    *parts, params = (brotli if codec == "brotli" else lzma).decompress(data).decode().split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True)), json.loads(params)


def check_closure(files: Mapping[str, Path], root: Path, exclude: Collection[str] = ()) -> None:
    """Raise ClosureError where a closure cannot be shipped: see `pack_code`. `files` comes from `import_closure`."""
    external = third_party(files)
    refused = (external.eager | external.lazy) - ALLOWED
    for name, path in files.items():
        for imported in imports(name, path):
            top = imported.module.partition(".")[0]
            if top in refused:
                why = FORBIDDEN.get(top, f"only {', '.join(sorted(ALLOWED))} may be imported")
                raise ClosureError(f"`{name}` line {imported.line} imports `{imported.module}`: {why}")
            for target in first_party(imported, root):
                if within(target, exclude) and not imported.lazy:
                    raise ClosureError(
                        f"`{name}` line {imported.line} imports `{target}` on loading, but these parameters leave it "
                        "out: import it inside the function that uses it"
                    )


@functools.cache
def minify(source: str, path: str) -> str:
    """One module's source without comments, docstrings, assertions and annotations that nothing reads.

    Only variables inside functions get other names: modules, checkpoints and keyword calls use all others. Class
    attribute annotations stay, because `pgolf.config` builds dataclasses from `typing.get_type_hints`.
    """
    tree = ast.parse(source, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and any(isinstance(inner, ast.NamedExpr) for inner in ast.walk(node)):
            raise ClosureError(f"{path} line {node.lineno} assigns inside an assertion, which packing removes")
    tree = _Strip(keep_annotations=not READS_ANNOTATIONS.isdisjoint(_identifiers(tree))).visit(tree)
    _drop_unused(tree)
    return python_minifier.minify(
        ast.unparse(ast.fix_missing_locations(tree)),
        filename=path,
        remove_annotations=python_minifier.RemoveAnnotationsOptions(
            remove_variable_annotations=True,
            remove_return_annotations=False,  # _Strip decides about functions
            remove_argument_annotations=False,
            remove_class_attribute_annotations=False,
        ),
        remove_literal_statements=True,
        remove_asserts=True,
        hoist_literals=False,
        rename_locals=True,  # 4 percent of the bytes
        rename_globals=False,
        prefer_single_line=True,
    )


def _compress(data: bytes, codec: Codec) -> bytes:
    if codec == "brotli":
        return cast(bytes, brotli.compress(data, quality=11, lgwin=24))
    return lzma.compress(data, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)


class _Strip(ast.NodeTransformer):
    """Drop `if TYPE_CHECKING:` bodies and, unless kept, the annotations of functions."""

    def __init__(self, *, keep_annotations: bool) -> None:
        self.keep_annotations = keep_annotations

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return (node.orelse or ast.Pass()) if is_type_checking(node) else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not self.keep_annotations:
            node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        if not self.keep_annotations:
            node.annotation = None
        return node


def _identifiers(tree: ast.AST) -> set[str]:
    """Every name, attribute and imported module that the text mentions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found.update(part for module in modules for part in module.split("."))
    return found


def _drop_unused(tree: ast.Module) -> None:
    """Remove module-level imports from TYPING that nothing uses any more; quoted annotations count as use."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.update(re.findall(r"\w+", node.value))
    body: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module in TYPING:
            statement.names = [alias for alias in statement.names if (alias.asname or alias.name) in used]
            if not statement.names:
                continue
        body.append(statement)
    tree.body = body
