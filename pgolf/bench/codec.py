"""Bytes and seconds of every codec on one quantized file, stream by stream."""

import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import safe_open

from pgolf.codec import pergroup
from pgolf.codec.backends import Codec, compress, decompress
from pgolf.codec.entropy import decode, encode, model_groups
from pgolf.codec.layout import Array, Entry, by_group, group_bytes, raw_size
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
        report(f"{group}: pergroup")
        results.append(_published(group, entries, tensors, next(r for r in results[-3:] if r.codec == "brotli")))
        for name in filter(shutil.which, EXTERNAL):
            report(f"{group}: {name}")
            results.append(Measured(group, name, count, len(raw), *_external(name, raw)))
    return results + _ours(groups, tensors, heads, report)


def _ours(
    groups: Mapping[str, Sequence[Entry]], tensors: Mapping[str, Array], heads: int, report: Callable[[str], None]
) -> list[Measured]:
    watch = _Stopwatch(report)
    streams = encode(model_groups(groups, tensors, heads, watch), groups, watch)
    encoding, watch = watch.stop(), _Stopwatch(report)
    found = decode(streams, groups, {}, heads, watch)
    decoding = watch.stop()
    for key, tensor in found.items():
        assert tensor.tobytes() == tensors[key].tobytes(), key
    counts = {group: sum(entry.nbytes // entry.itemsize for entry in groups[group]) for group in streams}
    return [
        Measured(group, "gauss", counts[group], raw_size(groups[group]), len(data), encoding[group], decoding[group])
        for group, data in streams.items()
    ]


class _Stopwatch:
    """Processor seconds from each report to the next, by the report's last word, which is a group's name."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report, self.last = report, ("", time.process_time())
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __call__(self, text: str) -> None:
        (group, since), now = self.last, time.process_time()
        self.seconds[group] += now - since
        self.last = text.split()[-1], now
        self.report(text)

    def stop(self) -> Mapping[str, float]:
        """Seconds by group."""
        self("the end")
        return self.seconds


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


def relative(results: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Percent of its order-0 entropy that each group (outer key) needs under each codec (inner)."""
    order0 = {result.group: max(result.packed, 1) for result in results if result.codec == ORDER0}
    percent: dict[str, dict[str, float]] = {group: {} for group in order0}
    for result in results:
        if result.codec != ORDER0:
            percent[result.group][result.codec] = 100 * result.packed / order0[result.group]
    return percent


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def _published(group: str, entries: Sequence[Entry], tensors: Mapping[str, Array], remainder: Measured) -> Measured:
    """The published ordering, which has brotli (`remainder`) for all groups but the roles of the blocks' matrices."""
    if not pergroup.fits(group, entries):
        return replace(remainder, codec="pergroup")
    start = time.perf_counter()  # of lrzip too, which is a process of its own
    packed = pergroup.pack_group(group, entries, tensors)
    middle = time.perf_counter()
    pergroup.unpack_group(group, entries, packed)
    seconds = middle - start, time.perf_counter() - middle
    return Measured(group, "pergroup", remainder.symbols, remainder.raw, len(packed), *seconds)


def _external(name: str, raw: bytes) -> tuple[int, float, float]:
    """Bytes, seconds of packing and of unpacking by an installed program, wall-clock.

    Raises InputError for a program that fails, or does not give back what it packed.
    """
    pack, unpack = EXTERNAL[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "in").write_bytes(raw)
        start = time.perf_counter()
        _call(pack, place)
        middle = time.perf_counter()
        size = next(path for path in place.iterdir() if path.name.startswith("out")).stat().st_size
        _call(unpack, place)
        seconds = middle - start, time.perf_counter() - middle
        back = place / "back"
        if (back / "in" if back.is_dir() else back).read_bytes() != raw:
            raise InputError(f"{name} does not give back what it packed: reinstall it, or take it off PATH")
        return size, *seconds


def _call(command: Sequence[str], folder: Path) -> None:
    run = subprocess.run(command, cwd=folder, check=False, capture_output=True)
    if run.returncode:
        message = run.stderr.decode(errors="replace").strip()
        raise InputError(f"{command[0]} failed ({message}): reinstall it, or take it off PATH")
