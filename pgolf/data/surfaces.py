"""Bytes per token from surfaces: the original characters that SentencePiece says each token stands for.

This is the byte sidecar of CaseOps: pieces cannot tell their bytes there, and decoding prefixes of the tokens counts
half a character as three bytes (PR 1797). A byte piece has no surface but the last of its character, which has all of
it; of a character that normalisation splits, the last piece.

The surfaces come as a serialized `SentencePieceText`, the one form that every release since 0.2.1 gives (0.2.3 has no
immutable proto). Its few fields are read here, without a protobuf library:

    text: string = 1;  pieces: repeated { piece: string = 1; id: uint32 = 2; surface: string = 3; ... } = 2
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.data.caseops import surface_bytes
from pgolf.data.shards import BOS
from pgolf.errors import InputError

# Protobuf tags: field number * 8 + type (0: number, 2: string or message).
_TEXT, _PIECES, _PIECE, _ID, _SURFACE = b"\x0a\x12\x0a\x10\x1a"


def encode_counted(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Tokens of CaseOps documents, each after BOS, and the bytes of text behind each, both uint16 [n]; 0 for BOS.

    Raises InputError when the surfaces do not add up to the text, or one is too long for a sidecar.
    """
    tokens, counts = [], []
    for text, message in zip(texts, processor.encode(list(texts), out_type="serialized_proto"), strict=True):
        ids, surfaces = read_pieces(message)
        # What normalisation drops inside a document belongs to a neighbour's surface; only the edges may be missing.
        if b"".join(surfaces) not in text.encode():
            raise _unknown_form()
        walked = surface_bytes(surfaces)
        assert len(walked) == len(ids)
        if max(walked, default=0) > np.iinfo(np.uint16).max:
            raise InputError(
                f"one token of a validation document stands for {max(walked)} bytes (a long run of spaces?), a byte "
                "sidecar holds at most 65535: shorten the run or remove the document"
            )
        tokens += [BOS, *ids]
        counts += [0, *walked]
    return np.array(tokens, dtype=np.uint16), np.array(counts, dtype=np.uint16)


def read_pieces(message: bytes) -> tuple[list[int], list[bytes]]:
    """Ids and surfaces of a serialized `SentencePieceText`; InputError for any other order of fields."""
    ids: list[int] = []
    surfaces: list[bytes] = []
    at, end = 0, len(message)
    try:
        if at < end and message[at] == _TEXT:
            length, at = _varint(message, at + 1)
            at += length
        while at < end and message[at] == _PIECES:
            length, at = _varint(message, at + 1)
            stop = at + length
            at = _skip_piece(message, at)
            number, at = _varint(message, at)
            ids.append(number)
            if at < stop and message[at] == _SURFACE:
                length, at = _varint(message, at + 1)
                surfaces.append(message[at : at + length])
            else:
                surfaces.append(b"")
            at = stop
    except IndexError:
        raise _unknown_form() from None
    if at != end:
        raise _unknown_form()
    return ids, surfaces


def _skip_piece(message: bytes, at: int) -> int:
    """The position after the field `piece` and the tag of `id`."""
    if message[at] != _PIECE:
        raise _unknown_form()
    length, at = _varint(message, at + 1)
    if message[at + length] != _ID:
        raise _unknown_form()
    return at + length + 1


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, low ones first, at a position, and the position after it."""
    byte = message[at]
    value, shift = byte & 127, 7
    while byte > 127:
        at += 1
        byte = message[at]
        value |= (byte & 127) << shift
        shift += 7
    return value, at + 1


def _unknown_form() -> InputError:
    return InputError(
        f"sentencepiece {sentencepiece.__version__} gives its pieces in a form that is not known here: install a "
        "release from 0.2.1 to 0.2.3"
    )
