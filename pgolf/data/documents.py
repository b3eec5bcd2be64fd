"""Document files: one JSON object a line with the key `text`, plain or compressed, read as a stream.

The challenge's document list has this form. A document is identified by the
SHA-256 of its UTF-8 bytes.
"""

import hashlib
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from pgolf.errors import InputError

# One zstd block of four bytes may expand to 128 KiB: a small read bounds what a single call can give back.
READ_BYTES = 1 << 14


def document_hash(text: str) -> bytes:
    """SHA-256 (32 bytes) of the document's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).digest()


def read_documents(path: Path | str) -> Iterator[str]:
    """The documents of a .jsonl, .jsonl.zst or .jsonl.xz file in file order; memory holds about one line.

    Raises InputError at the call for a missing file or an unknown suffix, and while iterating for damaged
    compression or a line without a text, which the message names by its number (from 1).
    """
    return (document["text"] for document in _open(path))


def read_sources(path: Path | str) -> Iterator[str | None]:
    """The `source` of each of the documents that `read_documents` reads, None where it is no text."""
    return (source if isinstance(source := document.get("source"), str) else None for document in _open(path))


def _open(path: Path | str) -> Iterator[dict[str, Any]]:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing: set `data.train` and `data.val` to existing document files")
    for suffix, chunks in _FORMATS.items():
        if path.name.endswith(suffix):
            return _documents(path, chunks)
    raise InputError(f"{path} is no known document file: its name must end in {', '.join(_FORMATS)}")


def _documents(path: Path, chunks: Callable[[BinaryIO], Iterator[bytes]]) -> Iterator[dict[str, Any]]:
    """Parse line by line; errors of the decompressor become one message."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_lines(chunks(file)), 1):
                yield _document(line, f"{path}, line {number}")
    except (zstandard.ZstdError, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{path} is damaged after line {number} ({error}): fetch or compress it again") from None


def _document(line: bytes, where: str) -> dict[str, Any]:
    """The object of one line, whose `text` is one that can be encoded."""
    try:
        document = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}): write one JSON object with the key `text` a line") from None
    if not isinstance(document, dict) or not isinstance(text := document.get("text"), str):
        raise InputError(f"{where} has no text: give every line a key `text` with a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can escape half a surrogate pair, which no UTF-8 bytes exist for: it could not be hashed or counted.
        raise InputError(f"{where} holds a lone surrogate ({error}): repair or remove the document") from None
    return document


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream of chunks at line feeds; the last line may lack its own."""
    parts: list[bytes] = []
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*parts, line])
            parts.clear()
        parts.append(rest)
    if last := b"".join(parts):
        yield last


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(READ_BYTES):
        yield chunk


def _xz(file: BinaryIO) -> Iterator[bytes]:
    with lzma.open(file) as stream:
        while chunk := stream.read(READ_BYTES):
            yield chunk


def _zst(file: BinaryIO) -> Iterator[bytes]:
    """Frames one after the other. The library's file reader takes a cut-off frame for the end, so frames are counted
    here: the last one must be complete."""
    decoder = zstandard.ZstdDecompressor().decompressobj()
    while data := file.read(READ_BYTES):
        while data:
            if decoder.eof:
                decoder = zstandard.ZstdDecompressor().decompressobj()
            yield decoder.decompress(data)
            data = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise EOFError("it ends inside a zstd frame")


_FORMATS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".jsonl": _plain, ".jsonl.zst": _zst, ".jsonl.xz": _xz}
