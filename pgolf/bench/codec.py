"""Bytes and seconds of every codec on one quantized file, stream by stream."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import safe_open

from pgolf.codec.backends import Codec, compress, decompress
from pgolf.codec.entropy import decode, encode, model_groups
from pgolf.codec.layout import Array, Entry, by_group, group_bytes
from pgolf.errors import InputError
from pgolf.quant.state import split_key

EXTERNAL = {
    "lrzip": (["lrzip", "-q", "-z", "-L", "9", "-o", "out", "in"], ["lrzip", "-q", "-d", "-o", "back", "out"]),
    "zpaq": (["zpaq", "add", "out.zpaq", "in", "-m5", "-t1"], ["zpaq", "extract", "out.zpaq", "-to", "back"]),
}
"""Programs that are measured where they are installed: how they pack the file `in`, and unpack it."""
ORDER0 = "order-0"


@dataclass(frozen=True, slots=True)
class Measured:
    """One codec on one group of tensors."""

    group: str
    codec: str
    symbols: int
    raw: int
    packed: int
    encode_seconds: float
    """For our coder its share of the time of all groups, by elements."""
    decode_seconds: float


def read_quantized(path: Path) -> tuple[list[Entry], dict[str, Array]]:
    """Layout and tensors of a safetensors file with keys as `pgolf.quant.state` has them, in order of layers.

    Raises InputError for a file that is not safetensors or holds no codes.
    """
    try:
        with safe_open(path, "np") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # the package raises its own kinds
        raise InputError(f"{path} is no safetensors file ({error}): give quantized.safetensors") from None
    layout = [
        Entry(_group(key), key, str(tensors[key].dtype), tensors[key].shape) for key in sorted(tensors, key=_place)
    ]
    if not any(entry.key.endswith(".q") for entry in layout):
        raise InputError(f"{path} holds no codes (keys NAME.q): give artifacts/quantize/quantized.safetensors")
    return layout, tensors


def _place(key: str) -> tuple[int, str]:
    parts = key.split(".")
    return (int(parts[1]) if parts[0] == "blocks" else -1), key


def _group(key: str) -> str:
    name, suffix = split_key(key)
    if suffix == ".q":
        parts = name.removesuffix(".weight").split(".")
        return ".".join(parts[2:] if parts[0] == "blocks" else parts)
    if suffix == ".gq":
        return "gates"
    if suffix.startswith(".lq"):
        return "scales" if suffix.removesuffix("_a").endswith("s") else "lqer"
    return "scales" if suffix else "small"


def bench_codec(path: Path, heads: int, report: Callable[[str], None]) -> list[Measured]:
    """Every codec on every group of the file at `path`; `heads` is the model's number of query heads, 0 if unknown."""
    layout, tensors = read_quantized(path)
    groups = by_group(layout)
    results = []
    for group, entries in groups.items():
        raw = group_bytes(entries, tensors)
        count = sum(entry.nbytes // entry.itemsize for entry in entries)
        results.append(Measured(group, ORDER0, count, len(raw), order0_bytes(raw), 0.0, 0.0))
        for codec in get_args(Codec):
            report(f"{group}: {codec}")
            packed, encoding = _timed(lambda: compress(codec, raw))  # noqa: B023 (called at once)
            _, decoding = _timed(lambda: decompress(codec, packed, len(raw)))  # noqa: B023
            results.append(Measured(group, codec, count, len(raw), len(packed), encoding, decoding))
        results += [
            Measured(group, name, count, len(raw), *_external(name, raw)) for name in EXTERNAL if shutil.which(name)
        ]
    return results + _ours(groups, tensors, heads, report)


def _ours(
    groups: Mapping[str, Sequence[Entry]], tensors: Mapping[str, Array], heads: int, report: Callable[[str], None]
) -> list[Measured]:
    streams, encoding = _timed(lambda: encode(model_groups(groups, tensors, heads, report), groups))
    report("decoding")
    found, decoding = _timed(lambda: decode(streams, groups, {}, heads))
    for key, tensor in found.items():
        assert tensor.tobytes() == tensors[key].tobytes(), key
    counts = {group: sum(entry.nbytes // entry.itemsize for entry in groups[group]) for group in streams}
    total = max(1, sum(counts.values()))
    return [
        Measured(
            group, "gauss", counts[group], sum(entry.nbytes for entry in groups[group]), len(data),
            encoding * counts[group] / total, decoding * counts[group] / total,
        )
        for group, data in streams.items()
    ]  # fmt: skip


def order0_bytes(raw: bytes) -> int:
    """Bytes at the entropy of the stream's byte histogram, without the histogram itself."""
    counts = np.bincount(np.frombuffer(raw, np.uint8))
    counts = counts[counts > 0]
    return int(np.ceil(float((counts * np.log2(len(raw) / counts)).sum()) / 8)) if raw else 0


def totals(results: Sequence[Measured]) -> list[Measured]:
    """One sum over all groups for each codec, smallest first."""
    codecs = dict.fromkeys(result.codec for result in results)
    parts = {codec: [result for result in results if result.codec == codec] for codec in codecs}
    sums = [
        Measured(
            "all", codec, sum(r.symbols for r in rows), sum(r.raw for r in rows), sum(r.packed for r in rows),
            sum(r.encode_seconds for r in rows), sum(r.decode_seconds for r in rows),
        )
        for codec, rows in parts.items()
    ]  # fmt: skip
    return sorted(sums, key=lambda result: result.packed)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _external(name: str, raw: bytes) -> tuple[int, float, float]:
    """Bytes, seconds of packing and of unpacking by an installed program, wall-clock."""
    pack, unpack = EXTERNAL[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in").write_bytes(raw)
        start = time.perf_counter()
        subprocess.run(pack, cwd=place, check=True, capture_output=True)
        middle = time.perf_counter()
        packed = next(path for path in place.iterdir() if path.name.startswith("out"))
        size = packed.stat().st_size
        subprocess.run(unpack, cwd=place, check=True, capture_output=True)
        return size, middle - start, time.perf_counter() - middle
