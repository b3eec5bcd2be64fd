"""A checkpoint as a few small files, for machines that give back nothing larger: rounded to bfloat16, planes, zstd.

The matrices and the embedding are rounded to bfloat16, everything else stays float32. One stream, tensors in order of
their names: byte 0 of every bfloat16 element, byte 1 of every one, then the four planes of the float32 elements. The
lower plane of trained weights is noise, the upper one (sign and exponent) shrinks to a third, and higher levels of zstd
gain 2 % of the whole in hundreds of times the time. `index.json` names tensors, sizes and SHA-256s.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor

from pgolf import artifacts
from pgolf.checkpoint_file import load_checkpoint
from pgolf.errors import InputError
from pgolf.model.gpt import matrix_inputs

SCHEMA = "pgolf.checkpoint_parts"
INDEX = "index.json"
PART_BYTES = 16 * 1024 * 1024
"""Most bytes of one file."""
MAX_PARTS = 7
"""With the index at most eight files."""
MAX_BYTES = 1 << 30
"""Most bytes of the unpacked tensors: a damaged index must not ask for all the memory."""
LEVEL = 1
"""zstd level; for 36 M weights 1 gives 49.1 MB in 0.2 s, 19 gives 48.2 MB in 85 s."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def part_path(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"part-{number:02d}"


def split_checkpoint(path: Path, folder: Path) -> list[Path]:
    """Write the checkpoint `path` as parts into the new `folder`; returns the files written.

    Raises InputError for a file that is no checkpoint, a folder that is not empty, and a checkpoint that needs more
    than `MAX_PARTS` parts.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: name a new folder")
    checkpoint = load_checkpoint(path)
    checkpoint.build(torch.device("cpu"), torch.float32)  # fits its own shape constants
    _, meta = artifacts.load(path, schema="pgolf.checkpoint", made_by="train")
    matrices = matrix_inputs(checkpoint.config)
    rounded = {
        name: tensor.to(torch.bfloat16 if name in matrices else torch.float32)
        for name, tensor in sorted(checkpoint.state.items())
    }
    data = b"".join(_planes(dtype, rounded.values()) for dtype in DTYPES.values())
    packed = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(data)
    parts = [packed[start : start + PART_BYTES] for start in range(0, len(packed), PART_BYTES)]
    if len(parts) > MAX_PARTS:
        raise InputError(f"{path} has {len(packed):,} bytes even when packed; {MAX_PARTS} parts hold fewer")
    index = {
        "schema": SCHEMA,
        "version": 1,
        "meta": {**meta, "rounded": "bfloat16"},
        "tensors": [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in rounded.items()],
        "sha256": _sha256(data),
        "parts": [{"bytes": len(part), "sha256": _sha256(part)} for part in parts],
    }
    with artifacts.atomic_folder(folder) as temporary:
        for number, part in enumerate(parts):
            part_path(temporary, number).write_bytes(part)
        artifacts.write_json(temporary / INDEX, index)
    return [folder / INDEX, *(part_path(folder, number) for number in range(len(parts)))]


def join_checkpoint(folder: Path, path: Path) -> None:
    """Write the checkpoint that `folder` holds; its tensors are the rounded ones, in float32, and its metadata says so.

    Raises InputError for anything that is missing or differs from the index.
    """
    index = _read_index(folder)
    try:
        packed = b"".join(
            _read_part(part_path(folder, number), part["bytes"], part["sha256"])
            for number, part in enumerate(index["parts"])
        )
        shapes = {name: (DTYPES[dtype], torch.Size(shape)) for name, dtype, shape in index["tensors"]}
        size = sum(dtype.itemsize * shape.numel() for dtype, shape in shapes.values())
        if size > MAX_BYTES:
            raise InputError(f"{folder / INDEX} declares {size:,} bytes: copy the folder again")
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            data = reader.read(size + 1)
        if len(data) != size or _sha256(data) != index["sha256"]:
            raise InputError(f"{folder} does not unpack to the tensors it names: copy all its files again")
        meta = dict(index["meta"])
        known = {key: meta.pop(key) for key in ("stage", "params", "inputs")}
        extra = {key: value for key, value in meta.items() if key not in ("schema", "version")}
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, zstandard.ZstdError) as error:
        raise InputError(f"{folder / INDEX} is damaged ({error}): copy the folder again") from None
    state: dict[str, Tensor] = {}
    for dtype in DTYPES.values():
        names = [name for name, (own, _) in shapes.items() if own == dtype]
        count = sum(shapes[name][1].numel() for name in names)
        elements, data = _elements(dtype, data[: count * dtype.itemsize]), data[count * dtype.itemsize :]
        pieces = torch.split(elements, [shapes[name][1].numel() for name in names]) if names else ()
        state |= {name: piece.view(shapes[name][1]).float() for name, piece in zip(names, pieces, strict=True)}
    artifacts.save(path, state, schema="pgolf.checkpoint", extra=extra, **known)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _planes(dtype: torch.dtype, tensors: Iterable[Tensor]) -> bytes:
    """The tensors of one type, byte 0 of all elements first."""
    chosen = [t.contiguous().view(-1) for t in tensors if t.dtype == dtype]
    if not chosen:
        return b""
    data = torch.cat(chosen).view(torch.uint8).view(-1, dtype.itemsize)
    return data.T.contiguous().numpy().tobytes()


def _elements(dtype: torch.dtype, data: bytes) -> Tensor:
    """The inverse of `_planes`, all elements in one row."""
    if not data:
        return torch.empty(0, dtype=dtype)
    planes = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype.itemsize, -1)
    return planes.T.contiguous().view(-1).view(dtype)


def _read_index(folder: Path) -> dict[str, Any]:
    index = artifacts.read_json(folder / INDEX, "checkpoint split")
    found = (index.get("schema"), index.get("version")) if isinstance(index, dict) else None
    if found != (SCHEMA, 1):
        raise InputError(f"{folder / INDEX} is no index of checkpoint parts: run `pgolf checkpoint split` again")
    return dict(index)


def _read_part(path: Path, size: int, sha256: str) -> bytes:
    if not path.exists():
        raise InputError(f"{path} is missing: copy all files of the folder")
    data = path.read_bytes()
    if len(data) != size or _sha256(data) != sha256:
        raise InputError(f"{path} is damaged or incomplete ({len(data):,} bytes, not {size:,}): copy it again")
    return data
