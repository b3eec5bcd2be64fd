"""A folder of somebody else's, read and never run: no symbolic link is followed, nothing is unpacked to disk, nothing
is unpickled, and every size is bounded.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pgolf.audit.logs import LOG_BYTES, RunLog, read_log
from pgolf.audit.programs import encoding_of
from pgolf.errors import InputError

Kind = Literal["file", "link", "special", "archive", "pickle"]
ENTRIES, DEPTH = 2_000, 8
TEXT_BYTES = 1 << 20
"""Larger programs and JSON files are not read: the whole cap of a submission is 16 MB, its code some 0.2 MB."""
LOGS, ALL_LOG_BYTES = 24, 4 * LOG_BYTES

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".br", ".7z", ".rar", ".whl", ".lrz")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One directory entry that is no folder."""

    path: str
    """Relative to the folder, with slashes."""
    kind: Kind
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """What is known of a submission before any check."""

    root: Path
    entries: tuple[Entry, ...]
    complete: bool
    """Whether ENTRIES and DEPTH held everything."""
    sources: dict[str, str]
    """Path -> text of every program in Python."""
    readme: str
    submission: dict[str, Any] | None
    problem: str
    """What is wrong with submission.json; empty where nothing is."""
    logs: tuple[RunLog, ...]
    unread: tuple[str, ...]
    """Files that were too large, too many or not permitted to read."""

    def named(self, name: str) -> list[Entry]:
        """Entries with a file name, shortest path first."""
        return sorted((e for e in self.entries if e.path.rpartition("/")[2] == name), key=lambda e: len(e.path))

    @property
    def record(self) -> bool:
        """Whether the folder asks for a place among the records; other tracks keep the cap alone."""
        track = (self.submission or {}).get("track") or self.root.resolve().parent.name
        return re.search(r"(?i)(?:^|[\W_])(?:non(?:record|[\W_]|$)|unlimited)", str(track)[:200]) is None

    @property
    def runs(self) -> tuple[RunLog, ...]:
        """The logs of whole runs: what trained and was scored, or was cut off on the way."""
        return tuple(log for log in self.logs if log.steps is not None or log.scores)


def read_folder(root: Path) -> Folder:
    """List and read a submission; InputError where there is no folder."""
    if not root.is_dir():
        raise InputError(f"{root} is no folder: name a submission folder, an artifact, or nothing for the run here")
    entries, complete = _list(root)
    unread: list[str] = []

    def text(entry: Entry, source: bool = False) -> str:
        if entry.size > TEXT_BYTES:
            unread.append(f"{entry.path} ({entry.size:,} bytes)")
            return ""
        return read_text(root, entry, TEXT_BYTES, source)

    files = [entry for entry in entries if entry.kind == "file"]
    sources = {entry.path: text(entry, source=True) for entry in files if entry.path.endswith(".py")}
    readmes = sorted((e for e in files if e.path.lower().endswith("readme.md")), key=lambda e: len(e.path))
    claims = sorted((e for e in files if e.path.rpartition("/")[2] == "submission.json"), key=lambda e: len(e.path))
    submission, problem = _parse(text(claims[0])) if claims else (None, "there is none")
    logs: list[RunLog] = []
    budget = ALL_LOG_BYTES
    for entry in filter(_is_log, files):
        if len(logs) == LOGS or min(entry.size, LOG_BYTES) > budget:
            unread.append(entry.path)
            continue
        budget -= min(entry.size, LOG_BYTES)
        try:
            logs.append(read_log(root / entry.path))
        except OSError:  # no rights, or a name in no encoding
            unread.append(entry.path)
    return Folder(
        root=root, entries=entries, complete=complete, sources=sources, readme=text(readmes[0]) if readmes else "",
        submission=submission, problem=problem, logs=tuple(logs), unread=tuple(unread),
    )  # fmt: skip


def _list(root: Path) -> tuple[tuple[Entry, ...], bool]:
    found: list[Entry] = []
    complete = True
    for entry in _walk(root, root, DEPTH):
        if entry is None or len(found) == ENTRIES:
            complete = False
            break
        found.append(entry)
    return tuple(sorted(found, key=lambda entry: entry.path)), complete


def _walk(root: Path, folder: Path, depth: int) -> Iterator[Entry | None]:
    """Entries below a folder; None where it is too deep."""
    with os.scandir(folder) as items:
        for item in items:
            path = Path(item.path)
            if item.is_dir(follow_symlinks=False):
                if depth:
                    yield from _walk(root, path, depth - 1)
                else:
                    yield None
                continue
            status = item.stat(follow_symlinks=False)
            name = path.relative_to(root).as_posix().encode("utf-8", "replace").decode()
            yield Entry(path=name, kind=_kind(name.lower(), status.st_mode), size=status.st_size)


def _kind(name: str, mode: int) -> Kind:
    if stat.S_ISLNK(mode):
        return "link"
    if not stat.S_ISREG(mode):
        return "special"
    if name.endswith(ARCHIVES):
        return "archive"
    return "pickle" if name.endswith(PICKLES) else "file"


def _is_log(entry: Entry) -> bool:
    folder, _, name = entry.path.rpartition("/")
    return name.endswith(".log") or (name.endswith(".txt") and ("logs" in folder.split("/") or "seed" in name))


def read_text(root: Path, entry: Entry, limit: int, source: bool = False) -> str:
    """The beginning of a file, as UTF-8 or, for a program, in the encoding that it declares."""
    data = read_bytes(root / entry.path, limit)
    return data.decode(encoding_of(data) if source else "utf-8", "replace")


def read_bytes(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a regular file, whatever became of it since it was listed."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return b""
    with os.fdopen(handle, "rb") as file:
        return file.read(limit) if stat.S_ISREG(os.fstat(handle).st_mode) else b""


def _parse(text: str) -> tuple[dict[str, Any] | None, str]:
    """The object in a JSON text, or what is wrong with it."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(names := {name for name, _ in pairs}) < len(pairs):
            raise ValueError(f"a key is given twice, among {', '.join(sorted(names)[:8])}")
        return dict(pairs)

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON number")

    def whole(digits: str) -> int:
        if len(digits) > 19:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else constant(digits[:20])

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=constant, parse_int=whole, parse_float=real)
    except (ValueError, RecursionError) as error:
        return None, f"it is no JSON ({str(error)[:120]})"
    return (found, "") if isinstance(found, dict) else (None, "it holds no object")
