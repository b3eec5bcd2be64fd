"""The container: one checksummed file that holds a model as compressed streams, without names and shapes.

Names and shapes follow from the header (model configuration, quantization scheme) by a layout that the caller
computes, so they cost nothing (after the `PGRP` container of PR 1855, whose remainder stream carries them). Format,
version 1; all numbers are unsigned and little-endian, offsets and lengths are in bytes:

    offset  length
    0       4       magic "PGLF"
    4       2       version: 1
    6       16      first 16 bytes of the SHA-256 of everything from offset 22 to the end of the file
    22      1       codec of the header
    23      4       H, length of the header when unpacked, at most 1 MiB
    27      4       h, length of the header as stored
    31      2       N, number of streams, at most 4096
    33      h       header: a JSON object in ASCII with sorted keys and without spaces
    33+h    9 * N   table, for each stream: codec (1), unpacked length (4), stored length (4)
    ...     ...     the N streams in table order, back to back, up to the end of the file

Codecs: 0 stored as it is, 1 brotli, 2 zstd frame without magic number and with a window of at most 16 MiB, 3 raw LZMA2
whose dictionary size is the unpacked length, at least 4 KiB and at most 16 MiB, 4 our entropy coder (docs/codec.md), 5
the published ordering (`pgolf.codec.pergroup`); the header has one of 0 to 3. A stored length is never above the
unpacked one (for codec 4: by more than 12,288), and equal to it for codec 0. The unpacked lengths of all streams
together are at most 1 GiB, and that of a stream of codec 4 at most 64 (stored length + 12,288).

Stream i belongs to the i-th group of the layout, in order of first appearance. Its unpacked bytes are, for each maximal
run of consecutive tensors of the group whose elements have equal width w: the run's elements one tensor after the
other, 2-D int8 tensors column by column, all others row by row; then, where w > 1, byte 0 (the lowest) of every element
of the run, byte 1 of every element, and so on up to byte w - 1. Streams of codec 4 hold symbols instead, and are
decoded after all others, which they may be predicted from; of codec 5 these bytes with the rows in another order.

A reader trusts nothing: lengths are checked against the file and the limits, then the checksum, then every unpacked
length against the layout, all before any stream is unpacked. The checksum finds damage, not malice.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args

from pgolf.codec.backends import Codec, CorruptStreamError, decompress
from pgolf.codec.choose import MOST_PER_BYTE, STATES, Choice, Report, heads_of, pack_groups, silent, squeeze
from pgolf.codec.layout import MAX_RAW_BYTES, Array, Entry, by_group, group_tensors, raw_size
from pgolf.errors import InputError

MAGIC = b"PGLF"
VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_STREAMS = 4096

CODECS: tuple[str, ...] = ("stored", "brotli", "zstd", "lzma", "gauss", "pergroup")
"""Codec names by their number in the file."""

Layout = Callable[[dict[str, Any]], Sequence[Entry]]
"""From the header to the layout. The header may come from a hostile file: build it with strict types and bounds."""

_SEAL = struct.Struct("<4sH16s")  # magic, version, checksum of what follows
_SIZES = struct.Struct("<BIIH")  # header: codec, unpacked, stored; number of streams
_ROW = struct.Struct("<BII")  # stream: codec, unpacked, stored
_REMEDY = "the file is damaged or truncated: run `pgolf compress` again"


@dataclass(frozen=True, slots=True)
class StreamSize:
    """What one stream costs."""

    raw: int
    """Bytes before compression."""
    packed: int
    """Bytes in the file."""
    codec: str
    """Codec of the stream, a name of `CODECS`."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """A stream as it lies in the file; `what` names it in messages."""

    what: str
    codec: str
    raw: int
    data: bytes | memoryview


def pack(
    header: Mapping[str, Any],
    layout: Sequence[Entry],
    tensors: Mapping[str, Array],
    codec: Choice = "brotli",
    report: Report = silent,
) -> bytes:
    """Write the container. Equal input gives equal bytes. Its own result is unpacked once and compared bit for bit.

    `layout` must be what the reader will compute from `header`. A stream that `codec` cannot shrink is stored as it is;
    `report` is told what is being done. Raises InputError for a header that JSON cannot hold, tensors that differ from
    the layout in name, type or shape, a limit that is exceeded, a missing package, and a result that does not unpack to
    the input.
    """
    body = _body(header, layout, tensors, codec, report)
    blob = _SEAL.pack(MAGIC, VERSION, _checksum(body)) + body
    _compare(blob, _canonical(header), layout, tensors, codec, report)
    return blob


def packed_size(
    header: Mapping[str, Any],
    layout: Sequence[Entry],
    tensors: Mapping[str, Array],
    codec: Choice = "brotli",
    report: Report = silent,
) -> int:
    """Bytes of the container that `pack` would write, without unpacking it again."""
    return _SEAL.size + len(_body(header, layout, tensors, codec, report))


def _body(
    header: Mapping[str, Any],
    layout: Sequence[Entry],
    tensors: Mapping[str, Array],
    codec: Choice,
    report: Report,
) -> bytes:
    """What follows the seal."""
    groups = by_group(layout)
    if len(groups) > MAX_STREAMS:
        raise InputError(f"the layout has {len(groups)} groups; a container holds at most {MAX_STREAMS}")
    known = {entry.key for entries in groups.values() for entry in entries}
    if extra := sorted(set(tensors) - known):
        raise InputError(f"tensor `{extra[0]}` is not in the layout")
    text = _canonical(header)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(f"the header has {len(text)} bytes of JSON; a container holds at most {MAX_HEADER_BYTES}")
    head = squeeze(text, [codec] if codec in get_args(Codec) else ["brotli"])  # type: ignore[list-item]
    streams = pack_groups(header, groups, tensors, codec, report).values()
    return b"".join(
        [
            _SIZES.pack(CODECS.index(head.codec), head.raw, len(head.data), len(streams)),
            head.data,
            *(_ROW.pack(CODECS.index(stream.codec), stream.raw, len(stream.data)) for stream in streams),
            *(stream.data for stream in streams),
        ]
    )


def unpack(blob: bytes, layout: Layout, report: Report = silent) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a container: the header, and the tensors by key (new, writable, C order, little-endian).

    Raises InputError for anything that is not one whole undamaged container that fits `layout(header)`. The tensors and
    one stream at a time are all that is allocated, and only as far as the file really unpacks. `report` is told what is
    being decoded.
    """
    header, streams = _parse(blob)
    groups = _match(header, streams, layout)
    tensors: dict[str, Array] = {}
    coded: dict[str, bytes | memoryview] = {}
    for (group, entries), stream in zip(groups.items(), streams, strict=True):
        if stream.codec == "gauss":
            coded[group] = stream.data
        elif stream.codec == "pergroup":
            tensors.update(_published(group, entries, stream))
        else:
            tensors.update(group_tensors(entries, _inflate(stream)))
    if coded:
        from pgolf.codec import entropy  # not part of a submission that does without

        try:
            tensors.update(entropy.decode(coded, groups, tensors, heads_of(header), report))
        except CorruptStreamError as error:
            _damaged(f"the codes: {error}")
    return header, {entry.key: tensors[entry.key] for entries in groups.values() for entry in entries}


def stream_sizes(blob: bytes, layout: Layout) -> dict[str, StreamSize]:
    """What each group costs, without unpacking it; the rest of the file is preamble, header and table.

    Raises InputError like `unpack`, except for streams that do not unpack.
    """
    header, streams = _parse(blob)
    groups = _match(header, streams, layout)
    return {
        group: StreamSize(stream.raw, len(stream.data), stream.codec)
        for group, stream in zip(groups, streams, strict=True)
    }


def _canonical(header: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(dict(header), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the header cannot be written as JSON ({error})") from None
    return text.encode("ascii")


def _checksum(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).digest()[:16]


def _inflate(stream: _Stream) -> bytes | bytearray | memoryview:
    if stream.codec == "stored":
        return stream.data
    codec: Codec = stream.codec  # type: ignore[assignment]  # one of CODECS, checked by _row
    try:
        return decompress(codec, stream.data, stream.raw)
    except CorruptStreamError as error:
        raise InputError(f"{stream.what}: {error}: {_REMEDY}") from None


def _published(group: str, entries: Sequence[Entry], stream: _Stream) -> dict[str, Array]:
    from pgolf.codec.pergroup import unpack_group  # not part of a submission that does without

    try:
        return unpack_group(group, entries, stream.data)
    except CorruptStreamError as error:
        raise InputError(f"{stream.what}: {error}: {_REMEDY}") from None


def _damaged(what: str) -> NoReturn:
    raise InputError(f"{what}: {_REMEDY}")


def _row(what: str, number: int, raw: int, packed: int) -> str:
    """Check one codec and pair of lengths; returns the codec's name."""
    if number >= len(CODECS) or (what == "the header" and CODECS[number] in ("gauss", "pergroup")):
        _damaged(f"{what} has codec {number}, which does not exist there in version {VERSION}")
    most = raw + STATES if CODECS[number] == "gauss" else raw
    if packed > most or (packed != raw and CODECS[number] == "stored"):
        _damaged(f"the lengths of {what} do not add up ({raw} bytes stored as {packed} by {CODECS[number]})")
    if CODECS[number] == "gauss" and raw > (packed + STATES) * MOST_PER_BYTE:
        _damaged(f"the lengths of {what} do not add up ({raw} bytes coded as {packed})")
    return CODECS[number]


def _parse(blob: bytes) -> tuple[dict[str, Any], list[_Stream]]:
    """Check the frame of a container and split it; only the header is unpacked."""
    view = memoryview(blob)
    start = _SEAL.size + _SIZES.size
    if bytes(view[:4]) != MAGIC[: len(view)]:
        raise InputError(f"not a pgolf container (it begins with {bytes(view[:4])!r}): {_REMEDY}")
    if len(view) < start:
        _damaged(f"the container is truncated to {len(view)} bytes")
    _, version, checksum = _SEAL.unpack_from(view)
    if version != VERSION:
        age = "newer" if version > VERSION else "unknown"
        raise InputError(
            f"the container has {age} version {version}, this pgolf reads version {VERSION}: "
            "update pgolf, or run `pgolf compress` again"
        )
    number, raw, packed, count = _SIZES.unpack_from(view, _SEAL.size)
    if raw > MAX_HEADER_BYTES:
        _damaged(f"the header declares {raw} bytes, more than {MAX_HEADER_BYTES}")
    if count > MAX_STREAMS:
        _damaged(f"the container declares {count} streams, more than {MAX_STREAMS}")
    codec = _row("the header", number, raw, packed)
    table = start + packed
    streams = _split(view, table, count)
    if _checksum(view[_SEAL.size :]) != checksum:
        _damaged("the checksum does not match")
    return _header(_Stream("the header", codec, raw, view[start:table])), streams


def _split(view: memoryview, table: int, count: int) -> list[_Stream]:
    """The streams of a file whose table of `count` rows begins at offset `table`."""
    position = table + count * _ROW.size
    if len(view) < position:
        _damaged(f"the container is truncated: header and table need {position} bytes, the file has {len(view)}")
    streams = []
    total = 0
    for index, (number, raw, packed) in enumerate(_ROW.iter_unpack(view[table:position])):
        codec = _row(f"stream {index}", number, raw, packed)
        streams.append(_Stream(f"stream {index}", codec, raw, view[position : position + packed]))
        position += packed
        total += raw
    if total > MAX_RAW_BYTES:
        _damaged(f"the streams declare {total} bytes, more than {MAX_RAW_BYTES}")
    if len(view) < position:
        _damaged(f"the container is truncated: its lengths add up to {position} bytes, the file has {len(view)}")
    if len(view) > position:
        _damaged(f"{len(view) - position} bytes follow the end of the container")
    return streams


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _header(stream: _Stream) -> dict[str, Any]:
    data = bytes(_inflate(stream))
    try:
        header = json.loads(data.decode("ascii"), parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        _damaged(f"the header is not JSON ({error})")
    if not isinstance(header, dict):
        _damaged(f"the header is not a JSON object but a {type(header).__name__}")
    return header


def _match(header: dict[str, Any], streams: Sequence[_Stream], layout: Layout) -> dict[str, list[Entry]]:
    """The groups of the header's layout, checked against the streams' unpacked lengths."""
    try:
        groups = by_group(layout(header))
    # whatever a caller's layout trips over in a header from a hostile file
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        cause = None if isinstance(error, InputError) else error
        raise InputError(f"the header describes no layout ({type(error).__name__}: {error}): {_REMEDY}") from cause
    if len(groups) != len(streams):
        _damaged(f"the layout has {len(groups)} streams, the container {len(streams)}")
    for (group, entries), stream in zip(groups.items(), streams, strict=True):
        if raw_size(entries) != stream.raw:
            _damaged(f"the layout gives stream `{group}` {raw_size(entries)} bytes, the container {stream.raw}")
    return groups


def _compare(
    blob: bytes, text: bytes, layout: Sequence[Entry], tensors: Mapping[str, Array], codec: str, report: Report
) -> None:
    """Unpack what was just packed: a model that cannot be read back must not leave the machine."""
    header, decoded = unpack(blob, lambda _: layout, lambda text: report(f"checking: {text}"))
    survives = {"the header": _canonical(header) == text}
    for key, tensor in tensors.items():
        found = decoded[key]
        same = found.dtype == tensor.dtype and found.shape == tensor.shape and found.tobytes() == tensor.tobytes()
        survives[f"tensor `{key}`"] = same
    for what, same in survives.items():
        if not same:
            raise InputError(f"{what} does not survive codec `{codec}`: reinstall its package, or choose another codec")
