"""The text of a submission's program, also where it ships packed: parsed, never compiled or run."""

import ast
import base64
import binascii
import io
import lzma
import tokenize
import warnings
import zlib
from dataclasses import dataclass

import brotli

UNPACKED_BYTES = 1 << 20
PACKED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One Python file."""

    path: str
    text: str
    tree: ast.Module | None
    """None where it is no Python."""
    nodes: tuple[ast.AST, ...]
    """All of its tree."""
    unpacked_from: str | None = None
    """The file whose packed text this is."""

    def calls(self, *names: str) -> list[ast.Call]:
        """Calls of something whose name ends so."""
        return [node for node in self.nodes if isinstance(node, ast.Call) and called(node) in names]

    def functions(self) -> list[ast.FunctionDef]:
        """Every function, nested ones too."""
        return [node for node in self.nodes if isinstance(node, ast.FunctionDef)]


def parse(path: str, text: str, unpacked_from: str | None = None) -> Program:
    """A program's tree; hostile text gives none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree: ast.Module | None = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    nodes = () if tree is None else tuple(ast.walk(tree))
    return Program(path=path, text=text, tree=tree, nodes=nodes, unpacked_from=unpacked_from)


def encoding_of(data: bytes) -> str:
    """What a program declares on its first lines (PEP 263): packed ones are latin-1, a character a byte."""
    try:
        return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
    except SyntaxError:
        return "utf-8"


def bytes_of(text: str) -> bytes:
    """A program as it lies on disk."""
    return text.encode(encoding_of(text[:200].encode("utf-8", "replace")), "replace")


def programs(sources: dict[str, str]) -> list[Program]:
    """Every file, and what is packed inside it."""
    found = [parse(path, text) for path, text in sorted(sources.items())]
    inner = [parse(p.path, text, unpacked_from=p.path) for p in found for text in _packed_texts(p)]
    return found + [program for program in inner if program.tree is not None]


def entry_of(found: list[Program]) -> Program | None:
    """The program that runs: the train_gpt.py nearest to the folder's root."""
    named = [p for p in found if p.path.rpartition("/")[2] == "train_gpt.py" and p.unpacked_from is None]
    return min(named, key=lambda program: len(program.path), default=None)


def reachable(found: list[Program], entry: Program) -> list[Program]:
    """The entry, what is packed in it, and every file beside it that one of these imports, runs or reads by name."""
    folder = entry.path.rpartition("/")[0]
    beside = {p.path: p for p in found if p.path.rpartition("/")[0] == folder and p.unpacked_from is None}
    chosen, waiting = {entry.path}, [entry.path]
    while waiting:
        mine = waiting.pop()
        texts = [p for p in found if p.path == mine]
        mentioned = {name for p in texts for name in _mentions(p)}
        for path in beside:
            name = path.rpartition("/")[2]
            if path not in chosen and (name in mentioned or name.removesuffix(".py") in mentioned):
                chosen.add(path)
                waiting.append(path)
    return [p for p in found if p.path in chosen]


def _mentions(program: Program) -> set[str]:
    """Modules that it imports, and file names of programs among its strings."""
    found: set[str] = set()
    for node in program.nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
            found.update(alias.name for alias in node.names if not node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 300:
            if node.value.endswith(".py"):
                found.add(node.value.rpartition("/")[2])
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__", "run_module"):
            found.update(str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))
    return found


def called(node: ast.Call) -> str:
    """Last part of the name of what is called."""
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes; empty for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < 8:
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _packed_texts(program: Program) -> list[str]:
    """Python inside `decompress(b85decode("..."))`, as packed submissions carry it, or as plain latin-1."""
    blobs = [
        node.value.encode("latin1", "replace") if isinstance(node.value, str) else node.value
        for node in program.nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) > 500
    ]
    texts = (_unpack(blob) for blob in blobs[:4] if len(blob) <= PACKED_BYTES)
    return [text for text in texts if text]


def _unpack(blob: bytes) -> str:
    """The program in a packed constant; empty where it is none."""
    for decode in (base64.b85decode, _b64decode, bytes):
        try:
            data = decode(blob)
        except (ValueError, binascii.Error):
            continue
        for expand in (_lzma, _raw_lzma, _zlib, _brotli):
            try:
                found = expand(data)
                found = found if len(found) < UNPACKED_BYTES else found[:UNPACKED_BYTES].rpartition(b"\n")[0]
                text = found.decode()
            except (lzma.LZMAError, zlib.error, brotli.error, EOFError, ValueError):
                continue
            program, _, parameters = text.partition("\0")  # as `pgolf.submit.pack_code` joins them
            if len(program) > 20:
                return f"{program}\n# {parameters}" if "\n" not in parameters else program
    return ""


def _b64decode(data: bytes) -> bytes:
    return base64.b64decode(data, validate=True)


def _lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=1 << 28).decompress(data, UNPACKED_BYTES)


def _raw_lzma(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
    return lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=filters).decompress(data, UNPACKED_BYTES)


def _zlib(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, UNPACKED_BYTES)


def _brotli(data: bytes) -> bytes:
    found: bytes = brotli.Decompressor().process(data, output_buffer_limit=UNPACKED_BYTES)
    return found
