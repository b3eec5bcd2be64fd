"""The runtime closure as one `train_gpt.py`: the code bytes that count against the 16,000,000.

Every module that the entry reaches becomes part of one (`bundle`), which is minified, joined with the resolved
parameters, compressed, and wrapped in a few lines that unpack it into a temporary folder and run it there: Triton and
`inspect` need real source files, so executing a string would not do. The compressed bytes stand in the file as they
are, one character of the declared encoding latin-1 each (PEP 263); only the three that a long string cannot hold are
escaped, which costs 1 percent where base85 costs 25. What is counted is what ships, and equal input gives equal bytes.
"""

import ast
import functools
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
import python_minifier

from pgolf.config import canonical
from pgolf.errors import InputError
from pgolf.submit.bundle import bundle
from pgolf.submit.closure import ClosureError, first_party, import_closure, imports, third_party, within
from pgolf.submit.defaults import compact, complete

ENTRY = "pgolf.runtime"
"""The module whose `main(params)` a submission runs."""

ALLOWED = frozenset(
    {
        "brotli",
        "constriction",
        "cutlass",  # CuTe DSL
        "flash_attn",  # FlashAttention 2, and 4 as flash_attn.cute
        "flash_attn_interface",  # FlashAttention 3
        "numpy",
        "quack",  # quack-kernels: matrix products in CuTe DSL
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
    "pgolf.codec.pergroup": lambda params: params["compress"]["codec"] == "pergroup",
    "pgolf.codec.trellis": lambda params: params["quantize"]["method"] == "trellis",
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
    "pgolf.quant.coarsen": lambda params: params["quantize"]["dedup"] != "none" or params["quantize"]["prune_ones"] > 0,
    "pgolf.quant.columns": lambda params: params["quantize"]["columns"] != "none",
    "pgolf.quant.generate": lambda params: params["calibrate"]["source"] == "generated",
    "pgolf.quant.rotate": lambda params: params["quantize"]["rotate"],
    "pgolf.quant.sensitivity": lambda params: params["calibrate"]["sensitivity"] > 0,
    "pgolf.quant.steps": lambda params: (
        params["quantize"]["steps"] != "deviation" or params["quantize"]["hessian_aware"] > 0
    ),
    "pgolf.quant.ternary": lambda params: params["quantize"]["method"] == "ternary",
    "pgolf.quant.trellis": lambda params: params["quantize"]["method"] == "trellis",
    "pgolf.quant.two_sided": lambda params: params["quantize"]["row_block"] > 0,
    "pgolf.quant.fit": lambda params: params["quantize"]["fit"]["target_bytes"] is not None,
    "pgolf.train.choose": lambda params: params["train"]["choose_batches"] > 0,
    "pgolf.train.fast": lambda params: params["train"]["kernels"] == "triton",
    "pgolf.train.replay": lambda params: params["train"]["graphs"],
    "pgolf.train.finishing": lambda params: any(
        params["train"]["finish"][key] for key in ("replay_batches", "distill_steps")
    ),
    "pgolf.train.huber": lambda params: params["train"]["muon"]["huber"] is not None,
    "pgolf.train.mousse": lambda params: params["train"]["muon"]["mousse"],
    "pgolf.train.norms": lambda params: params["train"]["clip"] == "global",
    "pgolf.train.recorder": lambda params: False,  # a submission runs once: no trace, no resumable states
    "pgolf.train.qat": lambda params: any(params["train"]["qat"][key] for key in ("below", "last")),
    "pgolf.train.selective": lambda params: params["train"]["token_fraction"] < 1,
    "pgolf.train.snapshots": lambda params: params["train"]["average"] in ("swa", "tight_swa", "lawa"),
    "pgolf.train.warmdowns": lambda params: params["train"]["schedule"] != "linear",
    "pgolf.evaluate.carry": lambda params: params["evaluate"]["lora"]["carry"] > 0,
    "pgolf.evaluate.cached_ttt": lambda params: params["evaluate"]["ttt"] == "cached",
    "pgolf.evaluate.chunk_ttt.chunk_ttt": lambda params: params["evaluate"]["ttt"] == "chunk",
    "pgolf.evaluate.chunk_ttt": lambda params: params["evaluate"]["ttt"] in ("chunk", "phased"),
    "pgolf.evaluate.document_ttt": lambda params: params["evaluate"]["ttt"] in ("lora", "phased", "cached"),
    "pgolf.evaluate.neural_cache": lambda params: params["evaluate"]["cache"]["sharpness"] > 0,
    "pgolf.evaluate.normalized": lambda params: params["evaluate"]["lora"]["optimizer"] == "normalized",
    "pgolf.evaluate.pace": lambda params: params["evaluate"]["seconds"] is not None,
    "pgolf.evaluate.shared_ttt": lambda params: params["evaluate"]["ttt"] == "phased",
    "pgolf.evaluate.temperature": lambda params: params["evaluate"]["temperature"] != 1,
    "pgolf.evaluate.warm_up": lambda params: params["evaluate"]["ttt"] in ("lora", "phased"),
    # pgolf.data.shuffled_rows is always needed: calibration draws from it.
}
"""Module, or function in one, -> whether these parameters reach it. Its importers must import it inside the function
that uses it."""

WRAPPER = '''\
#coding:latin1
import brotli,json,pathlib,sys,tempfile;d=tempfile.TemporaryDirectory();s,q=brotli.decompress("""{data}""".encode(\
"latin1")).split(b"\\0");pathlib.Path(d.name,"program.py").write_bytes(s)
if __name__=="__main__":sys.path.insert(0,d.name);from program import main;main(json.loads(q))
'''
WRAPPED = re.compile(r'brotli\.decompress\(("""(?:[^\\]|\\.)*?""")\.encode', re.DOTALL)


@dataclass(frozen=True, slots=True)
class PackedCode:
    """A packed program."""

    source: bytes
    """The `train_gpt.py` to ship; its length is `bytes_code`."""
    readable: dict[str, str]
    """Path -> original source text of everything inside, for the submission folder."""


def optional_modules(params: Mapping[str, Any]) -> set[str]:
    """What of OPTIONAL `params` do not reach: what `pack_code` should exclude."""
    return {module for module, needed in OPTIONAL.items() if not needed(params)}


def pack_code(entry: str, root: Path, params: Mapping[str, Any], *, exclude: Collection[str] = ()) -> PackedCode:
    """Pack the closure of module `entry`, whose `main(params)` the packed file runs.

    Raises ClosureError for an external package outside ALLOWED, and for an excluded module that is imported when its
    importer is loaded (the packed program would not start).
    """
    assert not within(entry, exclude), f"the entry `{entry}` cannot be excluded"
    readable = program_sources(entry, root, exclude)
    blob = f"{program_text(readable, entry, exclude)}\0{canonical(compact(params))}".encode()
    data = _literal(_compressed(blob))
    return PackedCode(source=WRAPPER.format(data=data).encode("latin1"), readable=readable)


def unpack_code(source: bytes) -> tuple[str, Any]:
    """The program's text and the parameters inside a packed file, read without running it.

    With `program_text` of the readable source it proves that this and the counted program are the same one.
    """
    match = WRAPPED.search(source.decode("latin1"))
    if match is None:
        raise InputError("this is no packed train_gpt.py of this version: run `pgolf verify-size` again")
    data = ast.literal_eval(match[1]).encode("latin1")
    program, params = brotli.decompress(data).decode().split("\0")
    return program, complete(json.loads(params))


def program_sources(entry: str, root: Path, exclude: Collection[str] = ()) -> dict[str, str]:
    """Path -> text of every file that a program is made of; ClosureError where it cannot be shipped."""
    files = import_closure([entry], root, stop=exclude, packages={entry.partition(".")[0]})
    check_closure(files, root, exclude)
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in files.values()}


def program_text(sources: Mapping[str, str], entry: str = ENTRY, exclude: Collection[str] = ()) -> str:
    """The one module that ships, made from the readable `sources` (path -> text); equal input, equal text."""
    return _minified(tuple(sorted(sources.items())), entry, frozenset(exclude))


def packed_from(root: Path, code: bytes) -> dict[str, str] | None:
    """The readable sources under `root` where they are what `code` was packed from, otherwise None."""
    packed, params = unpack_code(code)
    try:
        exclude = optional_modules(params)
        sources = program_sources(ENTRY, root, exclude)
        return sources if program_text(sources, exclude=exclude) == packed else None
    except (ClosureError, KeyError):  # a program of another version has other modules and parameters
        return None


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


@functools.lru_cache(maxsize=4)
def _minified(sources: tuple[tuple[str, str], ...], entry: str, exclude: frozenset[str]) -> str:
    """Attributes and what errors are called keep their names: checkpoints and messages show them. So do arguments of
    Triton's kernels: a short name for one inside would be a copy, and the copy of a constant is none. Nor does Triton
    know another name of `range`.
    """
    text = bundle(dict(sources), entry, exclude)
    body = ast.parse(text).body
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    errors = [name for name in classes if name.endswith("Error")]
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    kernels = [node for node in functions if any(getattr(mark, "attr", "") == "jit" for mark in node.decorator_list)]
    return python_minifier.minify(
        text,
        remove_annotations=False,  # `strip` has decided about them
        hoist_literals=False,
        remove_asserts=True,  # they say what is known, for readers and the type checker
        rename_locals=True,
        rename_globals=True,
        preserve_globals=["main", *errors, *(["range"] if kernels else [])],
        preserve_locals=sorted({argument.arg for kernel in kernels for argument in kernel.args.args}),
        prefer_single_line=True,
    )


def _compressed(blob: bytes) -> bytes:
    """The shorter of two encodings: small blocks, since the code of one module is unlike the next one's, and distances
    for text or for tables (brotli's `font`), of which none is always best.
    """
    modes = (brotli.MODE_GENERIC, brotli.MODE_FONT)
    packed: list[bytes] = [brotli.compress(blob, quality=11, lgwin=24, lgblock=16, mode=mode) for mode in modes]
    return min(packed, key=len)


def _literal(data: bytes) -> str:
    """The bytes as the inside of a latin-1 literal between three quotes.

    It can hold all but NUL, carriage return (Python reads it as a line's end), the backslash and its own end.
    """
    text = data.decode("latin1").replace("\\", r"\\").replace("\r", r"\r")
    text = re.sub(r"\0(?=[0-7])", r"\\x00", text).replace("\0", r"\0")
    return re.sub('"(?="")|"$', r'\\"', text)
