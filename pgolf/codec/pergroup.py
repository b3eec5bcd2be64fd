"""The published `pergroup` codec (PR 1855) for one stream: similar rows side by side, written column by column.

The rows of some roles are sorted by a greedy walk to the nearest unused row, every matrix is transposed, and the
matrices of a role go together through `lrzip -z -L 9` (ZPAQ) where that program is installed, and through brotli where
it is not. The published file pickled all other tensors, names and shapes into a remainder; here these follow from the
container's header, and other groups are streams of their own under brotli. A stream of this codec:

    offset  length
    0       1       program of the codes: 0 brotli, 1 lrzip
    1       4       P, length of the packed row orders, little-endian; 0 for roles that are not sorted
    5       P       brotli: for each matrix of the group the number of the row that stands first, second, ... (2 each)
    5+P     ...     the codes as `pgolf.codec.layout` has them, rows in these orders, packed by the program
"""

import resource
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pgolf.codec.backends import CorruptStreamError, compress, decompress
from pgolf.codec.layout import Array, Entry, group_bytes, group_tensors, raw_size
from pgolf.errors import InputError

ROLES = {
    "tok_emb": True,
    "attn.c_k": False,
    "attn.c_q": True,
    "attn.c_v": False,
    "attn.proj": False,
    "mlp.fc": True,
    "mlp.proj": False,
}
"""Role -> whether its rows are sorted; all other groups belong to the remainder."""
MOST_ROWS = 1 << 16
_BROTLI, _LRZIP = 0, 1
_SECONDS = 600
"""What lrzip may take for one stream."""
_HEAD = struct.Struct("<BI")


def fits(group: str, entries: Sequence[Entry]) -> bool:
    """Whether the published format has a stream for this group: a role's int8 matrices, sorted ones of 2^16 rows."""
    codes = all(entry.dtype == "int8" and len(entry.shape) == 2 for entry in entries)
    return group in ROLES and codes and not (ROLES[group] and any(entry.shape[0] > MOST_ROWS for entry in entries))


def has_lrzip() -> bool:
    """Whether the codes go through lrzip here."""
    return shutil.which("lrzip") is not None


def similar_rows(codes: Array) -> Array:
    """Order uint16 [rows] of int8 [rows, columns]: from row 0 on, the nearest unused in L1 (the first of equals)."""
    left, rest, order = np.arange(len(codes)), codes.copy(), []
    best = 0
    for count in reversed(range(len(codes))):
        order.append(left[best])
        row = rest[best].copy()
        left[best:count], rest[best:count] = left[best + 1 : count + 1], rest[best + 1 : count + 1]
        apart = np.maximum(rest[:count], row)
        apart -= np.minimum(rest[:count], row)  # 0..255 once the sign is taken off
        if count:
            best = int(apart.view(np.uint8).sum(axis=1, dtype=np.int64).argmin())
    return np.array(order, np.uint16)


def pack_group(group: str, entries: Sequence[Entry], tensors: Mapping[str, Array]) -> bytes:
    """The stream of a group that `fits`. Takes O(rows^2 columns) for each sorted matrix. Raises InputError as lrzip."""
    orders = b""
    if ROLES[group]:
        order = {entry.key: similar_rows(tensors[entry.key]) for entry in entries}
        orders = compress("brotli", b"".join(rows.astype("<u2").tobytes() for rows in order.values()))
        tensors = {key: tensors[key][rows] for key, rows in order.items()}
    raw = group_bytes(entries, tensors)
    program = _LRZIP if has_lrzip() else _BROTLI
    codes = _lrzip(raw, ["-z", "-L", "9"]) if program == _LRZIP else compress("brotli", raw)
    return _HEAD.pack(program, len(orders)) + orders + codes


def unpack_group(group: str, entries: Sequence[Entry], data: bytes | memoryview) -> dict[str, Array]:
    """The tensors of a stream.

    Raises CorruptStreamError for what is no such stream, InputError where it needs lrzip and there is none.
    """
    if not fits(group, entries) or len(data) < _HEAD.size:
        raise CorruptStreamError("it is no pergroup stream")
    program, size = _HEAD.unpack_from(data)
    if program not in (_BROTLI, _LRZIP):
        raise CorruptStreamError(f"no program has the number {program}")
    if size and not ROLES[group]:
        raise CorruptStreamError("it has an order of rows, which this role does not sort")
    packed, codes = data[_HEAD.size : _HEAD.size + size], data[_HEAD.size + size :]
    raw = raw_size(entries)
    found = _expand(bytes(codes), raw) if program == _LRZIP else decompress("brotli", codes, raw)
    if len(found) != raw:
        raise CorruptStreamError(f"lrzip gave {len(found)} bytes, {raw} were declared")
    tensors = group_tensors(entries, found)
    if ROLES[group]:
        rows = [entry.shape[0] for entry in entries]
        numbers = np.frombuffer(decompress("brotli", packed, 2 * sum(rows)), "<u2")
        for entry, order in zip(entries, np.split(numbers, np.cumsum(rows)[:-1]), strict=True):
            inverse = np.argsort(order, kind="stable")
            if (order[inverse] != np.arange(len(order))).any():
                raise CorruptStreamError("the order of its rows names a row twice")
            tensors[entry.key] = tensors[entry.key][inverse]
    return tensors


def _expand(codes: bytes, size: int) -> bytes:
    if not has_lrzip():
        raise InputError("a stream was packed by lrzip, which is not installed: apt install lrzip")
    try:
        return _lrzip(codes, ["-d"], size)
    except InputError as error:
        raise CorruptStreamError(str(error)) from None


def _lrzip(data: bytes, options: Sequence[str], most: int | None = None) -> bytes:
    """What lrzip makes of `data`; no file that it writes may have more than `most` bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.lrz"), Path(folder, "out")
        source.write_bytes(data)
        command = ["lrzip", "-q", "-f", *options, "-o", str(target), str(source)]
        limit = None if most is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            run = subprocess.run(command, capture_output=True, check=False, preexec_fn=limit, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise InputError(f"lrzip took more than {_SECONDS} s") from None
        if run.returncode or not target.exists():
            raise InputError(f"lrzip failed: {run.stderr.decode(errors='replace').strip()}")
        return target.read_bytes()
