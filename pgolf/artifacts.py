"""Artifacts on disk: safetensors with one canonical-JSON metadata key, loaders that refuse by name, atomic writes.

safetensors 0.8 orders two or more metadata keys at random, and DVC hashes bytes, so everything goes into the single
key `pgolf`. Nothing that varies between identical runs (times, hosts, git ids) belongs in it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from pgolf.config import canonical
from pgolf.errors import InputError

KEY = "pgolf"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and rename it into place, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success fsync its files, then it replaces `path` whole.

    On failure it is removed. Between two renames there is a moment without `path`, never one with half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        if path.exists():
            _exchange(path, temporary)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(path: Path, new: Path) -> None:
    """Put the folder `new` in the place of the folder `path`; an error leaves the old one there."""
    retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = retired / path.name
    try:
        path.replace(old)
        new.replace(path)
    except BaseException:
        if not path.exists():
            old.replace(path)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with sorted keys, atomically. Floats keep full precision."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: Path, made_by: str) -> Any:
    """Read JSON that the stage `made_by` writes."""
    require(path, made_by)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): run `pgolf {made_by}` again") from None


def require(path: Path, made_by: str) -> Path:
    """Return `path` if it exists, else say which stage writes it."""
    if not path.exists():
        raise InputError(f"{path} is missing: run `pgolf {made_by}` first (or `dvc repro`)")
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    schema: str,
    version: int = 1,
    stage: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors with their provenance: schema, producing stage, resolved params, SHA-256 of each input."""
    meta = {"schema": schema, "version": version, "stage": stage, "params": params, "inputs": inputs, **(extra or {})}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        safetensors.torch.save_file(contiguous, temporary, metadata={KEY: canonical(meta)})


def load(path: Path, *, schema: str, version: int = 1, made_by: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read tensors and metadata; refuse by name anything that is not `schema` of `version`."""
    require(path, made_by)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get(KEY, "{}"))
            found = (meta.get("schema"), meta.get("version")) if isinstance(meta, dict) else (None, None)
            if found != (schema, version):
                have = f"`{found[0]}` version {found[1]}" if found[0] else "no pgolf artifact"
                raise InputError(
                    f"{path} holds {have}, expected `{schema}` version {version}: run `pgolf {made_by}` again"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}): run `pgolf {made_by}` again") from None
