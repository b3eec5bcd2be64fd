"""A fetched export on disk, described by its manifest.

`pgolf fetch` writes the manifest last, so a folder that has one is whole: every file with size and SHA-256, the
repository and the commit. Nothing here needs a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.artifacts import read_json, sha256
from pgolf.data.config import PUBLISHED
from pgolf.data.hub_files import shard_of
from pgolf.data.shards import Split
from pgolf.errors import InputError

SCHEMA = "pgolf.published"
VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The manifest of a fetched folder."""

    folder: Path
    """Where the files lie."""

    name: str
    """Name in the catalogue."""

    repo: str
    """Repository that it came from, owner/name."""

    revision: str
    """Commit of the repository."""

    files: Mapping[str, Mapping[str, Any]]
    """File name -> `path` in the repository, `size`, `sha256`."""

    def shards(self, split: Split) -> list[str]:
        """Names of a split's shards in order."""
        numbered = [(found[1], name) for name in self.files if (found := shard_of(name)) and found[0] == split]
        return [name for _, name in sorted(numbered)]

    @property
    def tokenizer(self) -> str:
        """Name of the SentencePiece model."""
        (name,) = [name for name in self.files if name.endswith(".model")]
        return name

    def check(self, name: str) -> Path:
        """The path of a listed file whose bytes are those that were fetched, else InputError."""
        path, entry = self.folder / name, self.files[name]
        if not path.is_file():
            raise InputError(f"{path} is missing: {again(self.name, self.folder)}")
        if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            raise InputError(f"{path} is not what was fetched from {self.repo}: {again(self.name, self.folder)}")
        return path


def again(name: str, folder: Path) -> str:
    """The command that completes or repairs a folder."""
    return f"run `pgolf fetch {name} --to {folder}` again"


def open_published(path: Path) -> Published:
    """Read a manifest; InputError for one that is missing or not one of ours."""
    if not path.is_file():
        raise InputError(f"{path} is missing: run `pgolf fetch NAME --to {path.parent}`, which writes it last")
    manifest = read_json(path, "fetch")
    found = (manifest.get("schema"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (SCHEMA, VERSION):
        raise InputError(
            f"{path} is `{found[0]}` version {found[1]}, expected `{SCHEMA}` version {VERSION}: fetch into a new folder"
        )
    try:
        files = {entry["name"]: entry for entry in manifest["files"]}
        strings = {key: str(manifest[key]) for key in ("name", "repo", "revision")}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks an entry ({error!r}): remove it and run `pgolf fetch` again") from None
    return Published(folder=path.parent, files=files, **strings)


def describe(published: Published, **more: Any) -> dict[str, Any]:
    """The manifest as it is written."""
    head = {"schema": SCHEMA, "version": VERSION, "name": published.name}
    files = [{"name": name, **entry} for name, entry in sorted(published.files.items())]
    return {**head, "repo": published.repo, "revision": published.revision, "files": files, **more}


def manifest_path(folder: Path) -> Path:
    """Where the manifest of a folder lies."""
    return folder / PUBLISHED
