"""The challenge's shard files: a header of 256 int32, then the tokens as uint16, all little-endian.

Header: [0] = 20240520, [1] = version 1, [2] = number of tokens, the rest 0. So a file has exactly
`1024 + 2 * tokens` bytes. The byte sidecar of the validation tokens has the same form.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pgolf.errors import InputError

MAGIC = 20240520
VERSION = 1
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
BOS = 1
"""Id in front of every document."""

Split = Literal["train", "val", "val_bytes"]
REMEDY = "run `pgolf tokenize` again, or fetch the file again"


def shard_name(split: Split, index: int) -> str:
    """File name of a shard."""
    return f"fineweb_{split}_{index:06d}.bin"


def shard_files(folder: Path, split: Split) -> list[Path]:
    """The shards of a split in order; InputError when there is none."""
    files = sorted(folder.glob(f"fineweb_{split}_*.bin"))
    if split == "val":
        # The byte sidecar matches the pattern of the validation tokens.
        files = [path for path in files if "_bytes_" not in path.name]
    if not files:
        raise InputError(f"{folder} holds no fineweb_{split}_*.bin: run `pgolf tokenize` first")
    return files


def shard_header(tokens: int) -> bytes:
    """The 1024 header bytes for a number of tokens."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, tokens
    return header.tobytes()


def write_shard(path: Path, tokens: npt.NDArray[np.integer]) -> None:
    """Write one shard; InputError for no tokens or values that are not uint16."""
    if tokens.size == 0:
        raise InputError(f"{path}: a shard needs at least one token")
    if int(tokens.min()) < 0 or int(tokens.max()) > np.iinfo(np.uint16).max:
        raise InputError(f"{path}: values from {tokens.min()} to {tokens.max()} do not fit the shard's uint16")
    path.write_bytes(shard_header(tokens.size) + tokens.astype("<u2").tobytes())


def shard_length(path: Path) -> int:
    """Number of tokens of a shard, after checking magic, version and exact file size (InputError names which)."""
    if not path.is_file():
        raise InputError(f"shard {path} is missing: {REMEDY}")
    with path.open("rb") as file:
        data = file.read(HEADER_BYTES)
    if len(data) < HEADER_BYTES:
        raise InputError(f"shard {path} is truncated: {len(data)} of {HEADER_BYTES} header bytes; {REMEDY}")
    magic, version, tokens = (int(value) for value in np.frombuffer(data, dtype="<i4")[:3])
    if magic != MAGIC:
        raise InputError(f"{path} is not a shard: its first number is {magic}, not {MAGIC}; {REMEDY}")
    if version != VERSION:
        raise InputError(f"shard {path} has version {version}, this reader knows {VERSION}: {REMEDY}")
    if tokens < 1:
        raise InputError(f"shard {path} declares {tokens} tokens: {REMEDY}")
    size, expected = path.stat().st_size, HEADER_BYTES + 2 * tokens
    if size != expected:
        problem = "truncated" if size < expected else "too long"
        raise InputError(f"shard {path} is {problem}: {size} bytes, {tokens} tokens need {expected}; {REMEDY}")
    return tokens


def read_shard(path: Path) -> np.memmap[tuple[int], np.dtype[np.uint16]]:
    """The tokens of a shard, uint16 [n], mapped and not read; InputError as `shard_length`."""
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(shard_length(path),))
