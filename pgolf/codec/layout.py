"""Which tensors go into which stream, and the byte order inside a stream that general compressors like best.

A layout is a sequence of entries. All entries of one group form one stream, in layout order:

* 2-D int8 tensors (codes) are written column by column, as in the `pergroup` format of PR 1855: what one input feature
  meets in all rows stands together;
* tensors of wider types are written as byte planes: the lowest byte of every element, then the next one. Sign and
  exponent of fp16 scales then form a compressible run of their own (byte shuffle of the PR 1394 lineage). Consecutive
  entries of equal width share their planes: on the scales of a PR-1855 model that saves 2 % more than plane by tensor;
* anything else is written as it lies in memory, row by row.

Elements are little-endian. Only bytes are moved, so every bit pattern survives (NaN payloads, -0.0).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from pgolf.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
        *("float16", "float32", "float64"),
    )
}
"""Element types of a container; bfloat16 travels as a uint16 view, packed bits as uint8."""

MAX_RAW_BYTES = 1 << 30
"""1 GiB: most bytes that one tensor, and all tensors of a container together, may have."""
MAX_DIMENSIONS = 32
MAX_ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the layout. Raises InputError for what no container can hold."""

    group: str
    """Stream that the tensor belongs to; streams are ordered by first appearance."""
    key: str
    """Name of the tensor, unique in the layout."""
    dtype: str
    """Element type, a key of `DTYPES`."""
    shape: tuple[int, ...]
    """Dimensions; `()` is a scalar."""

    def __post_init__(self) -> None:
        if not (isinstance(self.group, str) and isinstance(self.key, str)):
            raise InputError(f"group and key of a tensor must be text, got {self.group!r} and {self.key!r}")
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise InputError(f"tensor `{self.key}` has type {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        shape = self.shape
        if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
            raise InputError(f"tensor `{self.key}` has shape {shape!r}; it must be a tuple of whole numbers >= 0")
        # numpy also refuses empty arrays whose other dimensions are too large, hence max(size, 1)
        if len(shape) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) * self.itemsize > MAX_RAW_BYTES:
            raise InputError(f"tensor `{self.key}` of shape {shape} exceeds {MAX_DIMENSIONS} dimensions or 1 GiB")

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.itemsize


def by_group(layout: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries of each group, groups in order of first appearance.

    Reads no more than `MAX_ENTRIES` + 1 entries. Raises InputError for more of them, for a key that occurs twice and
    for more than `MAX_RAW_BYTES` in all.
    """
    groups: dict[str, list[Entry]] = {}
    keys: set[str] = set()
    total = 0
    for entry in layout:
        if entry.key in keys:
            raise InputError(f"tensor `{entry.key}` occurs twice in the layout")
        keys.add(entry.key)
        total += entry.nbytes
        if len(keys) > MAX_ENTRIES or total > MAX_RAW_BYTES:
            raise InputError(f"the layout exceeds {MAX_ENTRIES} tensors or 1 GiB")
        groups.setdefault(entry.group, []).append(entry)
    return groups


def raw_size(entries: Iterable[Entry]) -> int:
    """Bytes of a group before compression."""
    return sum(entry.nbytes for entry in entries)


def group_bytes(entries: Sequence[Entry], tensors: Mapping[str, Array]) -> bytes:
    """The byte stream of one group; `raw_size(entries)` bytes.

    Raises InputError for a tensor that is missing or has another type or shape than its entry.
    """
    parts = []
    for width, run in groupby(entries, key=lambda entry: entry.itemsize):
        data = b"".join(_entry_bytes(entry, tensors) for entry in run)
        # elements x bytes -> bytes x elements; for one-byte types this changes nothing
        parts.append(np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes())
    return b"".join(parts)


def group_tensors(entries: Sequence[Entry], data: bytes | bytearray | memoryview) -> dict[str, Array]:
    """The inverse of `group_bytes`: new, writable arrays in C order. Raises InputError for a wrong length of `data`."""
    if len(data) != raw_size(entries):
        raise InputError(f"the group has {len(data)} bytes; its layout needs {raw_size(entries)}")
    tensors: dict[str, Array] = {}
    source = np.frombuffer(data, np.uint8)
    for width, group in groupby(entries, key=lambda entry: entry.itemsize):
        run = list(group)
        planes, source = np.split(source, [raw_size(run)])
        elements = np.ascontiguousarray(planes.reshape(width, -1).T).reshape(-1)  # bytes in element order
        for entry in run:
            flat, elements = np.split(elements, [entry.nbytes])
            tensors[entry.key] = _entry_tensor(entry, flat)
    return tensors


def _is_codes(entry: Entry) -> bool:
    return entry.dtype == "int8" and len(entry.shape) == 2


def _entry_bytes(entry: Entry, tensors: Mapping[str, Array]) -> bytes:
    tensor = tensors.get(entry.key)
    if tensor is None:
        raise InputError(f"tensor `{entry.key}` of the layout is missing")
    if tensor.dtype != DTYPES[entry.dtype] or tensor.shape != entry.shape:
        found = f"{tensor.dtype} {tensor.shape}"
        raise InputError(f"tensor `{entry.key}` is {found}; the layout says {entry.dtype} {entry.shape}")
    return (tensor.T if _is_codes(entry) else tensor).tobytes()


def _entry_tensor(entry: Entry, flat: Array) -> Array:
    """`flat`: the entry's bytes in element order."""
    if _is_codes(entry):
        rows, columns = entry.shape
        return flat.view(np.int8).reshape(columns, rows).T.copy()
    return flat.copy().view(DTYPES[entry.dtype]).reshape(entry.shape)
