"""Opens a folder of tokens after checking it against its manifest and its tokenizer.

Records of the challenge were lost to tokens and byte counts that did not belong together (a claimed 1.0066 was 1.0970).
So nothing is scored before hashes, lengths and the ratio `rho = (validation tokens - 1) / bytes` agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.artifacts import read_json, sha256
from pgolf.data.shards import BOS, Split, read_shard, shard_files, shard_length
from pgolf.data.sidecar import check_sidecar
from pgolf.errors import InputError

SCHEMA = "pgolf.tokens"
VERSION = 1
MANIFEST = "manifest.json"
RHO_TOLERANCE = 1e-3
CHECKED_TOKENS = 100_000_000
"""Training shards up to this size in all are hashed at every start; larger ones only when they are fetched."""
AGAIN = "run `pgolf tokenize` again"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tokens:
    """A checked folder of tokens."""

    manifest: Mapping[str, Any]
    """The manifest as it was read."""

    vocab_size: int
    """Pieces of the tokenizer."""

    tokenizer_sha256: str
    """SHA-256 of the tokenizer's file."""

    train: tuple[Path, ...]
    """Training shards in order."""

    train_tokens: int
    """Tokens in all training shards."""

    val: npt.NDArray[np.uint16]
    """Validation tokens [n]."""

    val_bytes: npt.NDArray[np.uint16]
    """Bytes charged to each validation token as a target [n]; 0 for BOS."""

    val_documents: int
    """Validation documents."""

    val_raw_bytes: int | None
    """UTF-8 bytes of the validation documents; None (unavailable) for shards that came without documents."""

    tokens_per_byte: float
    """rho of these arrays: scored tokens over canonical bytes."""

    def check_model(self, path: Path, vocab_size: int, tokenizer_sha256: str) -> None:
        """Refuse a model file that was trained with another tokenizer."""
        if (vocab_size, tokenizer_sha256) != (self.vocab_size, self.tokenizer_sha256):
            raise InputError(f"{path} was trained with another tokenizer than these tokens: run `pgolf train` again")


def open_tokens(folder: Path, tokenizer_path: Path | None) -> Tokens:
    """Check everything, large training shards by their length only, and load the validation set.

    `tokenizer_path` None skips the tokenizer's check, for stages that never decode. Raises InputError naming the file
    that is missing, damaged, or not the one that the manifest describes.
    """
    path = folder / MANIFEST
    manifest = read_json(path, "tokenize")
    found = (manifest.get("schema"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (SCHEMA, VERSION):
        raise InputError(f"{path} is `{found[0]}` version {found[1]}, expected `{SCHEMA}` version {VERSION}: {AGAIN}")
    try:
        return _checked(folder, manifest, tokenizer_path)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} lacks an entry or has one of another type ({error!r}): {AGAIN}") from None


def _checked(folder: Path, manifest: dict[str, Any], tokenizer_path: Path | None) -> Tokens:
    """Compare files with the manifest; an ill-formed manifest may raise KeyError or TypeError."""
    if tokenizer_path is not None:
        _check_tokenizer(tokenizer_path, manifest["tokenizer_sha256"])
    small = sum(entry["tokens"] for entry in manifest["train"]["shards"]) <= CHECKED_TOKENS
    train = _files(folder, "train", manifest["train"]["shards"], content=small)
    val = _joined(_files(folder, "val", manifest["val"]["shards"], content=True))
    val_bytes = _joined(_files(folder, "val_bytes", manifest["val_bytes"]["shards"], content=True))
    if len(val_bytes) != len(val):
        raise InputError(
            f"the byte sidecar in {folder} has {len(val_bytes)} entries for {len(val)} validation tokens: {AGAIN}"
        )
    rho = (len(val) - 1) / max(1, int(val_bytes.sum(dtype=np.int64)))
    expected = float(manifest["val"]["tokens_per_byte"])
    if not abs(rho - expected) <= RHO_TOLERANCE * expected:
        raise InputError(
            f"the validation set in {folder} has {rho:.5f} tokens per byte, its manifest says {expected:.5f}: tokens "
            f"and byte counts do not belong together; {AGAIN}"
        )
    _check_documents(folder, val, manifest["val"]["documents"], train[0])
    if tokenizer_path is not None:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
        check_sidecar(processor, val, val_bytes, manifest["transform"])
    return Tokens(
        manifest=manifest,
        vocab_size=manifest["vocab_size"],
        tokenizer_sha256=manifest["tokenizer_sha256"],
        train=tuple(train),
        train_tokens=sum(entry["tokens"] for entry in manifest["train"]["shards"]),
        val=val,
        val_bytes=val_bytes,
        val_documents=manifest["val"]["documents"],
        val_raw_bytes=manifest["val"]["raw_bytes"],
        tokens_per_byte=rho,
    )


def _check_tokenizer(path: Path, expected: str) -> None:
    if not path.is_file():
        raise InputError(f"tokenizer {path} is missing: run `pgolf tokenize` first")
    if (actual := sha256(path)) != expected:
        raise InputError(
            f"tokenizer {path} has SHA-256 {actual}, but the tokens were made with {expected}: take the tokenizer that "
            f"belongs to the tokens, or {AGAIN}"
        )


def _check_documents(folder: Path, val: npt.NDArray[np.uint16], documents: int, first: Path) -> None:
    """Every document starts with BOS: without it the loaders find no documents (PR 1736), and a cut shows."""
    starts = int(np.count_nonzero(val == BOS))
    if starts != documents or val[0] != BOS:
        raise InputError(
            f"the validation tokens in {folder} hold {starts} BOS (id {BOS}) for {documents} documents, and start with "
            f"id {val[0]}: every document must start with BOS; {AGAIN}"
        )
    if (start := read_shard(first)[0]) != BOS:
        raise InputError(f"{first} starts with id {start}: every document must start with BOS (id {BOS}); {AGAIN}")


def _files(folder: Path, split: Split, entries: Sequence[Mapping[str, Any]], content: bool) -> list[Path]:
    """The shards of a split, which must be those of the manifest: names, lengths and, with `content`, hashes."""
    files = shard_files(folder, split)
    names, listed = {path.name for path in files}, {entry["name"] for entry in entries}
    if names != listed:
        raise InputError(
            f"{folder} and its manifest disagree on the {split} shards (missing: {_join(listed - names)}; not listed: "
            f"{_join(names - listed)}): {AGAIN}"
        )
    by_name = {entry["name"]: entry for entry in entries}
    for path in files:
        entry = by_name[path.name]
        if (length := shard_length(path)) != entry["tokens"]:
            raise InputError(f"shard {path} has {length} tokens, its manifest says {entry['tokens']}: {AGAIN}")
        if content and (actual := sha256(path)) != entry["sha256"]:
            raise InputError(f"shard {path} has SHA-256 {actual}, its manifest says {entry['sha256']}: {AGAIN}")
    return files


def _join(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _joined(files: Sequence[Path]) -> npt.NDArray[np.uint16]:
    """All tokens of some shards, in memory [n]."""
    return np.concatenate([read_shard(path) for path in files])
