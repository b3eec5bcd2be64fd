"""The tokenize stage with a fetched export instead of documents: checked, put in place, described in our manifest.

What later stages read is the same as after tokenizing documents: shards, a byte sidecar, a manifest. The shards are
not copied where the file system can share them.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.artifacts import atomic_folder, sha256, write_bytes, write_json
from pgolf.data.catalogue import Export, find
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.published import Published, open_published
from pgolf.data.shard_writer import ShardWriter
from pgolf.data.shards import BOS, read_shard, shard_length
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokens import MANIFEST, SCHEMA, VERSION
from pgolf.data.verify import Validation, check_tokenizer, read_validation
from pgolf.errors import InputError

try:
    from fcntl import ioctl
except ImportError:  # not on Windows
    ioctl = None  # type: ignore[assignment]

FICLONE = 0x40049409
"""Linux's request to share the blocks of a file (btrfs, XFS, ZFS)."""

UNAVAILABLE = "unavailable"
"""What only documents can tell: an export comes without them."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, shards done, shards in all)."""


def adopt_published(
    data: DataConfig,
    config: TokenizeConfig,
    tokens_dir: Path,
    tokenizer_path: Path,
    progress: Progress | None = None,
) -> dict[str, float | int | str]:
    """Write `tokenizer_path` and, replaced as a whole, `tokens_dir`; return the metrics that tokenizing would give.

    Every file is compared with the hash under which it was fetched, the validation split with the published figures.
    Raises InputError for a folder or settings that do not fit; nothing is then replaced.
    """
    assert data.published is not None
    report = progress or (lambda phase, done, total: None)
    published = open_published(data.published)
    export = find(published.name)
    if not isinstance(export, Export):
        raise InputError(
            f"`data.train` is {str(data.published)!r}, a list of documents and no tokens: cut it into a validation and "
            "a training file (README, Published data) and name these"
        )
    _check_settings(config, export, published)
    train = published.shards("train")[: data.train_shards]
    if not train or len(train) < (data.train_shards or 0):
        raise InputError(
            f"`data.train_shards` is {data.train_shards}, {published.folder} has {len(train)} training shards: "
            f"run `pgolf fetch {published.name} --to {published.folder} --train-shards {data.train_shards or 80}`"
        )
    tokenizer = published.check(published.tokenizer)
    check_tokenizer(export, tokenizer)
    val, sidecar = ([published.check(name) for name in published.shards(split)] for split in ("val", "val_bytes"))
    counts, found = read_validation(export, val, sidecar, tokenizer)
    with atomic_folder(tokens_dir) as folder:
        train_section = _place_train(published, train, folder, report)
        manifest = {
            "schema": SCHEMA,
            "version": VERSION,
            "transform": export.transform,
            "tokenizer_sha256": published.files[published.tokenizer]["sha256"],
            "vocab_size": export.vocab_size,
            "source": {"name": published.name, "repo": published.repo, "revision": published.revision},
            "train": train_section,
            "val": {
                **_split(found.documents, [_placed(published, path, folder) for path in val]),
                "bytes": found.bytes,
                "raw_bytes": None,
                "tokens_per_byte": found.tokens_per_byte,
            },
            "val_bytes": _place_sidecar(published, sidecar, counts, shard_length(val[0]), folder),
        }
        write_json(folder / MANIFEST, manifest)
    write_bytes(tokenizer_path, tokenizer.read_bytes())
    return _metrics(train_section, found, export)


def _check_settings(config: TokenizeConfig, export: Export, published: Published) -> None:
    """The `tokenize` section must not ask for another tokenizer than the export's."""
    if config.vocab_size != export.vocab_size:
        raise InputError(
            f"`tokenize.vocab_size` is {config.vocab_size}, the export {published.name} has {export.vocab_size}: "
            f"set it to {export.vocab_size}"
        )
    if config.case_ops != (export.transform == CASEOPS):
        raise InputError(
            f"`tokenize.case_ops` is {str(config.case_ops).lower()}, the export {published.name} was made with "
            f"`{export.transform}`: set it to {str(not config.case_ops).lower()}"
        )
    if config.model is not None or config.tokenizer_train_docs is not None:
        raise InputError(
            f"`tokenize.model` is {config.model!r}, `tokenize.tokenizer_train_docs` is {config.tokenizer_train_docs}: "
            f"the export {published.name} brings its tokenizer; set both to null"
        )


def _place_train(published: Published, names: list[str], folder: Path, report: Progress) -> dict[str, Any]:
    """Check the training shards, put them in their place, and return their section of the manifest."""
    documents, listed = 0, []
    for done, name in enumerate(names, 1):
        path = published.check(name)
        documents += int(np.count_nonzero(read_shard(path) == BOS))
        listed.append(_placed(published, path, folder))
        report("train", done, len(names))
    return _split(documents, listed)


def _placed(published: Published, path: Path, folder: Path) -> dict[str, Any]:
    """Put a checked shard in its place and return its entry."""
    place(path, folder / path.name)
    return {"name": path.name, "sha256": published.files[path.name]["sha256"], "tokens": shard_length(path)}


def _split(documents: int, listed: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of every split; the documents themselves are not known."""
    tokens = sum(entry["tokens"] for entry in listed)
    return {"documents": documents, "documents_sha256": None, "tokens": tokens, "shards": listed}


def _place_sidecar(
    published: Published, paths: list[Path], counts: npt.NDArray[np.uint16], shard_tokens: int, folder: Path
) -> dict[str, Any]:
    """The export's byte sidecar in its place, or one written from the byte table's counts."""
    if paths:
        listed = [_placed(published, path, folder) for path in paths]
    else:
        with ShardWriter(folder, "val_bytes", shard_tokens) as writer:
            writer.append(counts)
        listed = [{"name": path.name, "sha256": sha256(path), "tokens": count} for path, count in writer.files]
    return {"shards": listed, "tokens": len(counts)}


def _metrics(train: dict[str, Any], found: Validation, export: Export) -> dict[str, float | int | str]:
    return {
        "train_tokens": train["tokens"],
        "val_tokens": found.tokens,
        "train_documents": train["documents"],
        "val_documents": found.documents,
        "val_bytes": found.bytes,
        "val_raw_bytes": UNAVAILABLE,
        "bytes_per_token": 1 / found.tokens_per_byte,
        "overlap_documents": UNAVAILABLE,
        "tokenizer_skipped_documents": UNAVAILABLE,
        "tokenizer_vocab_size": export.vocab_size,
    }


def place(source: Path, target: Path) -> None:
    """Make `target` a file of the same content: shared blocks, else a hard link, else a copy.

    A fetched file is never written in place (it is replaced whole), so sharing it is safe.
    """
    if not (_reflink(source, target) or _hard_link(source, target)):
        shutil.copyfile(source, target)


def _reflink(source: Path, target: Path) -> bool:
    if ioctl is None:
        return False
    with source.open("rb") as read, target.open("xb") as write:
        try:
            ioctl(write.fileno(), FICLONE, read.fileno())
            return True
        except OSError:
            target.unlink()
    return False


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
        return True
    except OSError:
        return False
