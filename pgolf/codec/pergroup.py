"""The `pergroup` container of PR 1855: similar rows side by side, columns written out, one stream for each role.

Rows of some roles are sorted by a greedy walk to the nearest unused row, every matrix is transposed, and the roles'
streams go through `lrzip` (ZPAQ) where that program is installed; elsewhere brotli takes its place, and a reader tells
the two by lrzip's magic number. All other tensors are one file under brotli: the published one was pickled by torch,
this one is safetensors, with names, shapes and `meta` as JSON. Kept to compare with: no default uses it, and a
submission does not carry it.

    "PGRP", count of streams (9), their lengths (all 4 bytes, little-endian), the streams
"""

import json
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import brotli
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pgolf.codec.layout import Array
from pgolf.errors import InputError

MAGIC, LRZIP = b"PGRP", b"LRZI"
ROLES = {
    "tok_emb": True,
    "attn.c_k": False,
    "attn.c_q": True,
    "attn.c_v": False,
    "attn.proj": False,
    "mlp.fc": True,
    "mlp.proj": False,
}
"""Role -> whether its rows are sorted, in the order of the streams; remainder and permutations follow."""
MOST_ROWS = 1 << 16
_REMEDY = "the file is damaged or no pergroup container: write it again"


def similar_rows(codes: Array) -> Array:
    """Order uint16 [rows] of int8 [rows, columns]: from row 0 on, the nearest unused in L1 (the first of equals)."""
    left, order = np.arange(len(codes)), []
    rest = codes.astype(np.int16)
    best = 0
    while len(left):
        order.append(left[best])
        row = rest[best]
        left, rest = np.delete(left, best), np.delete(rest, best, axis=0)
        if len(left):
            best = int(np.abs(rest - row).sum(axis=1, dtype=np.int64).argmin())
    return np.array(order, np.uint16)


def pack_pergroup(tensors: Mapping[str, Array], meta: Any) -> bytes:
    """The container of `tensors` (keys as in `pgolf.quant.state`); `meta` is anything JSON holds.

    Raises InputError for a sorted matrix of more than 65,536 rows. Takes O(rows^2 columns) for each sorted one.
    """
    tensors = dict(sorted(tensors.items()))
    streams, orders, shapes = [], [], {}
    for role, is_sorted in ROLES.items():
        keys = _keys(role, tensors)
        parts = []
        for key in keys:
            codes = tensors.pop(key)
            if is_sorted:
                if len(codes) > MOST_ROWS:
                    raise InputError(f"tensor `{key}` has {len(codes)} rows; pergroup sorts at most {MOST_ROWS}")
                orders.append(similar_rows(codes))
                codes = codes[orders[-1]]
            parts.append(codes.T.tobytes())
        shapes[role] = list(keys.items())
        streams.append(_squeeze(b"".join(parts)))
    rest = {key: np.asarray(value, order="C") for key, value in tensors.items()}
    file = save(rest, {"m": json.dumps(meta), "s": json.dumps(shapes)})
    streams.append(brotli.compress(file, quality=11, lgwin=24))
    streams.append(brotli.compress(b"".join(order.astype("<u2").tobytes() for order in orders), quality=11, lgwin=24))
    return MAGIC + struct.pack(f"<{1 + len(streams)}I", len(streams), *map(len, streams)) + b"".join(streams)


def unpack_pergroup(blob: bytes) -> tuple[dict[str, Array], Any]:
    """Tensors by name, in order of names, and `meta`. Raises InputError for what is no such container."""
    try:
        return _unpack(blob)
    except (ValueError, KeyError, TypeError, IndexError, SafetensorError, struct.error, brotli.error) as error:
        raise InputError(f"{error}: {_REMEDY}") from None


def _unpack(blob: bytes) -> tuple[dict[str, Array], Any]:
    count = len(ROLES) + 2
    magic, found, *sizes = struct.unpack_from(f"<4s{1 + count}I", blob)
    ends = np.cumsum([8 + 4 * count, *sizes]).tolist()
    if magic != MAGIC or found != count or ends[-1] != len(blob):
        raise ValueError("magic number, number of streams and lengths do not fit")
    streams = [blob[start:end] for start, end in pairwise(ends)]
    rest = brotli.decompress(streams[-2])
    side = json.loads(rest[8 : 8 + int.from_bytes(rest[:8], "little")])["__metadata__"]
    shapes, tensors = json.loads(side["s"]), load(rest)
    orders = np.frombuffer(brotli.decompress(streams[-1]), "<u2")
    for (role, is_sorted), stream in zip(ROLES.items(), streams[:-2], strict=True):
        data = np.frombuffer(_expand(stream), np.int8)
        for key, (rows, columns) in shapes[role]:
            part, data = np.split(data, [rows * columns])
            codes = part.reshape(columns, rows).T
            if is_sorted:
                order, orders = np.split(orders, [rows])
                codes = codes[np.argsort(order, kind="stable")]
            tensors[key] = codes.copy()
        if len(data):
            raise ValueError(f"bytes follow the matrices of `{role}`")
    return dict(sorted(tensors.items())), json.loads(side["m"])


def _keys(role: str, tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a role's matrices of codes, by layer."""
    name = re.compile(rf"(?:blocks\.(\d+)\.)?{re.escape(role)}\.weight\.q")
    found = {key: match for key in tensors if (match := name.fullmatch(key))}
    keys = [key for key in found if tensors[key].dtype == np.int8 and tensors[key].ndim == 2]
    return {key: tensors[key].shape for key in sorted(keys, key=lambda key: int(found[key][1] or 0))}


def _squeeze(data: bytes) -> bytes:
    if not data:
        return b""
    if shutil.which("lrzip"):
        return _lrzip(data, ["-z", "-L", "9"])
    return bytes(brotli.compress(data, quality=11, lgwin=24))


def _expand(stream: bytes) -> bytes:
    if stream[:4] != LRZIP:  # no brotli stream with a window of 2^24 begins so
        return bytes(brotli.decompress(stream)) if stream else b""
    if not shutil.which("lrzip"):
        raise InputError("a stream was packed by lrzip, which is not installed: apt install lrzip")
    return _lrzip(stream, ["-d"])


def _lrzip(data: bytes, options: list[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.lrz"), Path(folder, "out")
        source.write_bytes(data)
        run = subprocess.run(
            ["lrzip", "-q", "-f", *options, "-o", str(target), str(source)], capture_output=True, check=False
        )
        if run.returncode or not target.exists():
            raise InputError(f"lrzip failed: {run.stderr.decode(errors='replace').strip()}")
        return target.read_bytes()
