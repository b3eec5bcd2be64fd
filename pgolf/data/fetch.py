"""Downloads a published export: announce, fetch what is missing, verify, describe.

A file gets its final name only after its size and its hash are those of the hub's listing, so an interrupted run
leaves whole files and one partial file for each that was under way, which the next run continues.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgolf.artifacts import sha256
from pgolf.data.catalogue import Documents, find
from pgolf.data.hub import Hub
from pgolf.data.hub_files import RemoteFile, select, shard_of
from pgolf.data.published import Published, manifest_path, open_published
from pgolf.data.shards import shard_length
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokenizer import load_tokenizer
from pgolf.data.verify import verify
from pgolf.errors import InputError

WORKERS = 4
PARTIAL = ".partial"
"""Folder of unfinished files, in the target folder: on the same disk, so that finishing is a rename."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, bytes done, bytes in all); phases: `check`, `download`."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a plan."""

    remote: RemoteFile
    """What the hub lists."""

    state: Literal["here", "missing", "damaged"]
    """What is in the target folder under its name."""

    partial: int
    """Bytes of it that an interrupted run left."""

    @property
    def todo(self) -> int:
        """Bytes to download."""
        return 0 if self.state == "here" else self.remote.size - self.partial


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a fetch will do."""

    name: str
    """Name in the catalogue."""

    repo: str
    """Repository, owner/name."""

    revision: str
    """Commit that the files come from."""

    folder: Path
    """Target folder."""

    items: tuple[Item, ...]
    """Every file of the export, wanted or here already."""

    @property
    def todo(self) -> list[Item]:
        """The files to download."""
        return [item for item in self.items if item.state != "here"]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(item.remote.size for item in self.items)

    @property
    def todo_size(self) -> int:
        """Bytes to download."""
        return sum(item.todo for item in self.items)


KINDS = {"val": "validation shards", "val_bytes": "byte sidecar", "train": "training shards"}


def summary(plan: Plan) -> list[tuple[str, int, float, int, float]]:
    """One row a kind of file: kind, files, GB, files that are here, GB to download; a last row with the sums."""
    kinds: dict[str, list[Item]] = {}
    for item in plan.items:
        found = shard_of(item.remote.name)
        kinds.setdefault(KINDS[found[0]] if found else item.remote.name, []).append(item)
    rows = []
    for kind, items in [*kinds.items(), ("together", list(plan.items))]:
        here = sum(item.state == "here" for item in items)
        size, todo = sum(item.remote.size for item in items), sum(item.todo for item in items)
        rows.append((kind, len(items), round(size / 1e9, 4), here, round(todo / 1e9, 4)))
    return rows


def plan_fetch(
    name: str,
    folder: Path,
    *,
    train_shards: int | None = None,
    repo: str | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Plan:
    """List the export on the hub and compare with `folder`; writes nothing.

    Training shards that are here already are kept: the plan covers them too. Raises InputError for an unknown name,
    repository or revision, for a repository without all parts of the export, and for a folder that holds another one.
    """
    export = find(name)
    if train_shards is not None and (train_shards < 0 or isinstance(export, Documents)):
        raise InputError(f"--train-shards is {train_shards}: give 0 or more, and not with `documents`")
    repo = repo or export.repo
    before = _before(folder, name, repo)
    commit, files = Hub(repo).listing(revision)
    remotes = select(files, export, train_shards, repo, at_least=_present(folder))
    _refuse_strangers(folder, remotes, repo)
    report = progress or (lambda phase, done, total: None)
    items, checked, total = [], 0, sum(file.size for file in remotes if (folder / file.name).is_file())
    for remote in remotes:
        items.append(_inspect(folder, remote, before, repo))
        checked += remote.size if (folder / remote.name).is_file() else 0
        report("check", checked, total)
    plan = Plan(name=name, repo=repo, revision=commit, folder=folder, items=tuple(items))
    _check_disk(plan)
    return plan


def _before(folder: Path, name: str, repo: str) -> Published | None:
    """The manifest of an earlier fetch into the folder, which must be of the same export."""
    if not manifest_path(folder).exists():
        return None
    before = open_published(manifest_path(folder))
    if (before.name, before.repo) != (name, repo):
        raise InputError(
            f"{folder} holds the export {before.name} of {before.repo}, not {name} of {repo}: one folder holds one "
            "export; give another folder with --to"
        )
    return before


def _present(folder: Path) -> int:
    """One more than the highest number of a training shard that is here: these are checked and kept."""
    found = [shard_of(path.name) for path in folder.glob("fineweb_train_*.bin")]
    return max((shard[1] + 1 for shard in found if shard), default=0)


def _refuse_strangers(folder: Path, remotes: list[RemoteFile], repo: str) -> None:
    """A shard or tokenizer that is not in the export would be mixed with it by every loader that globs."""
    known = {file.name for file in remotes}
    for path in sorted([*folder.glob("fineweb_*.bin"), *folder.glob("*.model")]):
        if path.name not in known:
            raise InputError(
                f"{path} is not among the files of {repo}: another export lies there; give another folder with --to, "
                "or remove it"
            )


def _inspect(folder: Path, remote: RemoteFile, before: Published | None, repo: str) -> Item:
    """What is here of a file. An intact file that is another one is refused rather than replaced."""
    path, partial = folder / remote.name, _partial(folder, remote)
    have = min(partial.stat().st_size, remote.size) if partial.is_file() else 0
    if not path.exists():
        return Item(remote, "missing", have)
    if same(path, remote):
        return Item(remote, "here", 0)
    listed = before.files.get(remote.name, {}).get("sha256") if before else None
    if _intact(path) and listed in (None, sha256(path)):
        origin = f"revision {before.revision} of {repo}" if before and listed else "another export"
        raise InputError(
            f"{path} is an intact file of {origin}, not the one that is asked for: files of two exports must not mix; "
            "give another folder with --to, the old --revision, or remove it"
        )
    return Item(remote, "damaged", have)


def _intact(path: Path) -> bool:
    """Whether a shard or tokenizer is whole in itself."""
    try:
        if shard_of(path.name):
            shard_length(path)
        elif path.suffix == ".model":
            load_tokenizer(path)
        else:
            return False  # a manifest is replaced, documents are fetched again
    except InputError:
        return False
    return True


def same(path: Path, remote: RemoteFile) -> bool:
    """Whether a file has the size and the hash that the hub lists: SHA-256 with LFS, git's SHA-1 without."""
    if path.stat().st_size != remote.size:
        return False
    if remote.sha256 is not None:
        return sha256(path) == remote.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id


def _partial(folder: Path, remote: RemoteFile) -> Path:
    """Where an unfinished file lies; the name tells which content it belongs to."""
    return folder / PARTIAL / f"{remote.name}.{(remote.sha256 or remote.blob_id)[:16]}"


def _check_disk(plan: Plan) -> None:
    existing = next(path for path in (plan.folder, *plan.folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if plan.todo_size > free:
        raise InputError(
            f"{plan.todo_size / 1e9:,.2f} GB are to be downloaded into {plan.folder}, where {free / 1e9:,.2f} GB are "
            "free: give another folder with --to, or fewer --train-shards"
        )


def complete(plan: Plan) -> list[tuple[str, str]]:
    """Check what the downloaded files hold and write the manifest; returns (what was verified, result) rows."""
    files = {
        file.name: {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256 or sha256(plan.folder / file.name),
        }
        for file in (item.remote for item in plan.items)
    }
    published = Published(folder=plan.folder, name=plan.name, repo=plan.repo, revision=plan.revision, files=files)
    rows = [("size and checksum", f"{len(files)} files, {plan.size / 1e9:,.2f} GB")]
    return rows + verify(published, find(plan.name))


def next_step(plan: Plan) -> str:
    """What to write into params.yaml to use the folder."""
    export, path = find(plan.name), manifest_path(plan.folder)
    if isinstance(export, Documents):
        return (
            f"The first {export.val_documents:,} lines of {plan.folder / export.file} are validation, the others "
            "training: cut them into two files for `data.val` and `data.train`."
        )
    return (
        f"To use it: data.train and data.val {path}, tokenize.vocab_size {export.vocab_size}, "
        f"tokenize.case_ops {str(export.transform == CASEOPS).lower()}, tokenize.model null."
    )


def download(plan: Plan, progress: Progress | None = None) -> None:
    """Fetch what is missing or damaged; each file is verified before it gets its name.

    InputError says what the hub refused, cut short or served wrongly; files that are complete stay.
    """
    if not plan.todo:
        return
    with _locked(plan):
        fetcher = _Fetcher(plan, progress or (lambda phase, done, total: None))
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(fetcher.fetch, item) for item in plan.todo]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                fetcher.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    shutil.rmtree(plan.folder / PARTIAL)


@contextlib.contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """One download at a time in a folder: two would append to the same partial files."""
    from filelock import FileLock, Timeout

    (plan.folder / PARTIAL).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(plan.folder / PARTIAL / "lock", timeout=0):
            yield
    except Timeout:
        raise InputError(f"another `pgolf fetch` is at work in {plan.folder}: wait for it") from None


class _Stopped(Exception):
    """Another file failed or the user interrupted."""


class _Fetcher:
    """Downloads the files of one plan; `fetch` runs in several threads."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self.hub, self.stop, self.lock = Hub(plan.repo), threading.Event(), threading.Lock()
        self.total = sum(item.remote.size for item in plan.todo)
        self.done = sum(item.partial for item in plan.todo)

    def fetch(self, item: Item) -> None:
        """Get one file under its final name."""
        remote, partial = item.remote, _partial(self.plan.folder, item.remote)
        if partial.is_file() and partial.stat().st_size > remote.size:
            partial.unlink()
        resumed = partial.is_file()
        self.hub.download(remote, self.plan.revision, partial, self.received)
        if resumed and not same(partial, remote):  # what lay there was damaged: once more, from the start
            self.received(-partial.stat().st_size)
            partial.unlink()
            self.hub.download(remote, self.plan.revision, partial, self.received)
        if not same(partial, remote):
            partial.unlink()
            raise InputError(
                f"{self.plan.repo} served other bytes than its listing says for {remote.path} (the checksum differs): "
                "run the same command again, or take another --revision"
            )
        if shard_of(remote.name):
            shard_length(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.plan.folder / remote.name)

    def received(self, size: int) -> None:
        """Count bytes; raises in a thread that should end."""
        if self.stop.is_set():
            raise _Stopped
        with self.lock:
            self.done += size
            self.progress("download", self.done, self.total)
