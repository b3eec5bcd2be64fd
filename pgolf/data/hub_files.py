"""Which files of a repository make up an export, found by their names: published repositories differ in their folders.

The official layout is `ROOT/manifest.json`, `ROOT/tokenizers/*.model`, `ROOT/datasets/DATASET/fineweb_*.bin` and
`ROOT/docs_selected.jsonl`, with ROOT `datasets`; forks and re-uploads leave parts out or move them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pgolf.data.catalogue import TRAIN_SHARDS, Documents, Export
from pgolf.data.shards import HEADER_BYTES, Split
from pgolf.data.sidecar import NONE
from pgolf.errors import InputError

SHARD = re.compile(r"fineweb_(train|val|val_bytes)_(\d+)\.bin")
"""The byte sidecar's names begin like the validation shards' (the trap of the `fineweb_val_*` glob)."""

REPO_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it."""

    path: str
    """Path in the repository."""

    size: int
    """Bytes of the content."""

    sha256: str | None
    """SHA-256 of the content, for a file in LFS; None for a small one in git itself."""

    blob_id: str
    """Git's SHA-1 of the blob: of the content without LFS, of the pointer with it."""

    @property
    def name(self) -> str:
        """File name, which it keeps here."""
        return PurePosixPath(self.path).name


def shard_of(name: str) -> tuple[str, int] | None:
    """Split and number of a shard's file name, or None."""
    found = SHARD.fullmatch(name)
    return (found[1], int(found[2])) if found else None


def select(
    files: Sequence[RemoteFile], export: Export | Documents, train_shards: int | None, repo: str, *, at_least: int = 0
) -> list[RemoteFile]:
    """The files to fetch, validation first: all of validation, the first `train_shards` training shards (None: 80).

    `at_least` training shards are taken whatever `train_shards` says, as far as there are so many. Raises InputError
    naming what `repo` lacks or has twice.
    """
    if isinstance(export, Documents):
        return [_one(files, name, repo) for name in (export.sidecar, export.file)]
    folder = _dataset_folder(files, export, repo)
    shards = {split: _shards(files, folder, split, repo) for split in ("train", "val", "val_bytes")}
    if export.transform != NONE and not shards["val_bytes"]:
        raise InputError(
            f"{repo} has no byte sidecar fineweb_val_bytes_*.bin in {folder}: without it every byte count of "
            f"`{export.transform}` text is wrong (PR 2071); take another repository or revision"
        )
    if shards["val_bytes"] and len(shards["val_bytes"]) != len(shards["val"]):
        raise InputError(f"{repo} has {len(shards['val'])} validation shards, {len(shards['val_bytes'])} byte sidecars")
    available = len(shards["train"])
    if train_shards is not None and train_shards > available:
        raise InputError(f"--train-shards is {train_shards}: {repo} has {available} training shards in {folder}")
    root = PurePosixPath(folder).parent.parent.as_posix()
    manifest = [file for file in files if file.path == _join(root, REPO_MANIFEST)]
    wanted = shards["train"][: max(at_least, TRAIN_SHARDS if train_shards is None else train_shards)]
    return [*shards["val"], *shards["val_bytes"], _tokenizer(files, export, root, repo), *manifest, *wanted]


def _join(root: str, name: str) -> str:
    return name if root == "." else f"{root}/{name}"


def _dataset_folder(files: Sequence[RemoteFile], export: Export, repo: str) -> str:
    """The folder of the shards: the one of the export's name, or the only one that there is."""
    folders = {
        PurePosixPath(file.path).parent.as_posix() for file in files if (shard_of(file.name) or ("",))[0] == "val"
    }
    named = {folder for folder in folders if PurePosixPath(folder).name == export.dataset}
    if len(named) > 1:
        named = {folder for folder in named if folder == f"datasets/datasets/{export.dataset}"} or named
    candidates = named or folders
    if len(candidates) != 1:
        listed = ", ".join(sorted(candidates)) or "none with fineweb_val_*.bin"
        raise InputError(f"{repo} has no one folder {export.dataset} (found: {listed}): give --repo or --revision")
    return candidates.pop()


def _shards(files: Sequence[RemoteFile], folder: str, split: Split, repo: str) -> list[RemoteFile]:
    """The shards of a split in order, whose numbers must have no gap."""
    numbered = {}
    for file in files:
        found = shard_of(file.name)
        if found and found[0] == split and PurePosixPath(file.path).parent.as_posix() == folder:
            if file.size < HEADER_BYTES + 2:
                raise InputError(f"{repo} has {file.size} bytes in {file.path}: a Git LFS pointer or no shard at all")
            numbered[found[1]] = file
    missing = set(range(min(numbered, default=0), max(numbered, default=-1) + 1)) - set(numbered)
    if missing:
        raise InputError(f"{repo} lacks shard {min(missing)} of the {split} split in {folder}: take another revision")
    return [numbered[index] for index in sorted(numbered)]


def _tokenizer(files: Sequence[RemoteFile], export: Export, root: str, repo: str) -> RemoteFile:
    """The SentencePiece model: by its published name, else the only one."""
    models = [file for file in files if file.name.endswith(".model")]
    for chosen in (
        [file for file in models if file.path == _join(root, f"tokenizers/{export.tokenizer}")],
        [file for file in models if file.name == export.tokenizer],
        models,
    ):
        if len(chosen) == 1:
            return chosen[0]
    found = ", ".join(file.path for file in models) or "none"
    raise InputError(f"{repo} has no one tokenizer {export.tokenizer} (found: {found}): give --repo or --revision")


def _one(files: Sequence[RemoteFile], name: str, repo: str) -> RemoteFile:
    """The only file of a name, or the one in the official place."""
    found = [file for file in files if file.name == name]
    found = [file for file in found if file.path == f"datasets/{name}"] or found
    if len(found) != 1:
        listed = ", ".join(file.path for file in found) or "none"
        raise InputError(f"{repo} has no one file {name} (found: {listed}): give --repo or --revision")
    return found[0]
