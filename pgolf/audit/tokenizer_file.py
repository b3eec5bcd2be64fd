"""A SentencePiece model in a submission: its pieces, read from the file's fields and never loaded.

The file is a protocol buffer: a list of (key, value) with key = 8 field + wire type. Field 1 of the model holds one
piece each: 1 its text, 2 its score, 3 its type (SentencePiece's sentencepiece_model.proto).
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from pgolf.audit.folder import Folder, read_bytes
from pgolf.audit.verdict import Finding, first_few, judge
from pgolf.data.accounting import EXPORTS
from pgolf.data.byte_table import SPACE

MODEL_BYTES, PIECES = 4 << 20, 1 << 18
NORMAL, BYTE = 1, 6
OPERATORS = [chr(code) for code in range(0xE001, 0xE005)]
SOURCE = "issue 897: no piece for a space; PR 1143, PR 1289: byte pieces miscounted; PR 1729: case operators"


class Piece(NamedTuple):
    """One entry of a vocabulary."""

    text: str
    kind: int


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a message; ValueError where the bytes are none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size, at = _varint(data, at) if wire == 2 else (8 if wire == 1 else 4, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("cut off")
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at == len(data):
            raise ValueError("cut off")
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")


def pieces(data: bytes) -> list[Piece]:
    """The vocabulary of a SentencePiece model; ValueError where it is none."""
    found: list[Piece] = []
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            entry = dict(fields(value))
            text, kind = entry.get(1, b""), entry.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(kind, int) or len(found) == PIECES:
                raise ValueError("no vocabulary")
            found.append(Piece(text.decode("utf-8", "replace"), kind))
    if not found:
        raise ValueError("no pieces")
    return found


def check_tokenizers(folder: Folder) -> list[Finding]:
    """Every `.model` file of the folder; nothing where there is none."""
    files = [e for e in folder.entries if e.kind == "file" and e.path.endswith(".model")]
    if not files:
        return []
    judged = []
    for entry in files[:8]:
        right, text = _judge(read_bytes(folder.root / entry.path, MODEL_BYTES))
        judged.append((right, f"{entry.path}: {text}"))
    for verdict in (False, None, True):
        if texts := [text for right, text in judged if right is verdict]:
            return [judge("tokenizer.pieces", verdict, first_few(texts), SOURCE)]
    return []


def _judge(data: bytes) -> tuple[bool | None, str]:
    digest = hashlib.sha256(data).hexdigest()
    for name, export in EXPORTS.items():
        if export.tokenizer_sha256 == digest:
            return True, f"the published one of {name}"
    try:
        vocabulary = pieces(data)
    except ValueError as error:
        return None, f"no SentencePiece model ({error})"
    texts = {piece.text for piece in vocabulary}
    labels = sum(piece.kind == BYTE for piece in vocabulary)
    unmarked = sum(piece.kind != BYTE and piece.text.startswith("<0x") for piece in vocabulary)
    text = f"{len(vocabulary):,} pieces, {labels} of them bytes"
    if unmarked:
        return False, f"{text}; {unmarked} byte pieces are not marked as such: their labels would be counted"
    if SPACE not in texts:
        return False, f"{text}; no piece for a space alone: it becomes three bytes"
    if labels not in (0, 256):
        return None, f"{text}; a byte without a piece cannot be written"
    operators = sum(operator in texts for operator in OPERATORS)
    if operators:
        return None, f"{text}, {operators} case operators: right only with the byte sidecar of its shards"
    return True, f"{text}, a space among them"
