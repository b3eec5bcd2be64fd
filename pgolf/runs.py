"""Finished runs, wherever they lie: a folder, a git revision, a DVC experiment.

An experiment is a git commit that no branch holds, and an artifact of an earlier run lies in DVC's cache under the
MD5 that `dvc.lock` of its commit names: both are read here without DVC, and nothing is checked out.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf import paths
from pgolf.artifacts import read_json
from pgolf.errors import InputError
from pgolf.params import parse_params

CACHE = Path(".dvc/cache/files/md5")
STAGES = ("tokenize", "train", "score", "calibrate", "quantize", "compress", "evaluate", "verify-size")
MANIFEST = paths.TOKENS / "manifest.json"
ARTIFACTS = (
    *(paths.TOKENIZER, MANIFEST, paths.MODEL, paths.TRACE, paths.QUANTIZED, paths.ARTIFACT),
    *(paths.LOSSES, paths.PACE, paths.PACKED_CODE),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What one run left behind."""

    name: str
    """As it was asked for, or with its seed."""
    params: Mapping[str, Any]
    """Dotted key -> value; empty where only metrics are there."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Stage -> its flat metrics, for the stages that finished."""
    files: Mapping[Path, Path]
    """Artifact, as in `pgolf.paths`, or validation shard -> where its bytes are; only those at hand."""

    @property
    def seed(self) -> int | None:
        """The training seed, where it is known."""
        return self.params.get("train.seed")

    @property
    def finished(self) -> bool:
        """Whether the run was scored."""
        return {"val_loss", "val_bpb"} <= set(self.metrics.get("evaluate", {}))

    def value(self, stage: str, key: str) -> Any:
        """One metric; InputError names the run and the stage that is missing."""
        try:
            return self.metrics[stage][key]
        except KeyError:
            raise InputError(
                f"run `{self.name}` has no metric `{key}` of `{stage}`: run `pgolf {stage}` there"
            ) from None

    def file(self, artifact: Path) -> Path:
        """Where an artifact lies; InputError says how to get it."""
        if artifact not in self.files:
            raise InputError(f"run `{self.name}` has no {artifact} here: run it in its folder, or `dvc fetch` it")
        return self.files[artifact]


def load_run(name: str, root: Path = Path()) -> Run:
    """The run called `name`: a folder, `workspace`, or a revision or DVC experiment of the repository at `root`."""
    folder = root if name == "workspace" else Path(name)
    if folder.is_dir():
        return _from_folder(name, folder)
    commit = resolve(name, root)
    if commit is None:
        raise InputError(
            f"`{name}` is no folder, and git knows no revision or DVC experiment of that name: `git log --oneline` and "
            "`dvc exp show` list them"
        )
    return _from_commit(name, commit, root)


def experiments(root: Path = Path()) -> list[str]:
    """Names of all DVC experiments of the repository at `root`; none outside a repository."""
    refs = _git(root, "for-each-ref", "--format=%(refname)", "refs/exps") or []
    kept = [ref for ref in refs if re.fullmatch(r"refs/exps/[0-9a-f]{2}/[0-9a-f]{38}/[^/]+", ref)]
    return [ref.rpartition("/")[2] for ref in kept]


def resolve(name: str, root: Path) -> str | None:
    """The commit of a revision or of a DVC experiment, or None."""
    if name.startswith("-"):
        return None
    experiments = [line for line in _git(root, "for-each-ref", "--format=%(refname)", "refs/exps") or []
                   if line.rpartition("/")[2] == name]  # fmt: skip
    for revision in [*experiments, name]:
        if found := _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"):
            return found[0]
    return None


def _from_folder(name: str, folder: Path) -> Run:
    root = folder.parent if folder.resolve().name == "metrics" else folder
    places = {stage: (root / paths.metrics(stage), folder / f"{stage}.json") for stage in STAGES}
    present = {stage: next((path for path in both if path.is_file()), None) for stage, both in places.items()}
    found = {stage: read_json(path, stage) for stage, path in present.items() if path}
    if not found:
        raise InputError(f"{folder} holds no metrics: name the folder of a run, or its metrics folder")
    params = root / paths.PARAMS
    text = params.read_text("utf-8") if params.is_file() else ""
    shards = [path.relative_to(root) for path in (root / paths.TOKENS).glob("fineweb_val_*.bin")]
    files = {artifact: path for artifact in (*ARTIFACTS, *shards) if (path := root / artifact).is_file()}
    return Run(name=name, params=_flat(text, params), metrics=found, files=files)


def _from_commit(name: str, commit: str, root: Path) -> Run:
    def show(path: Path) -> str | None:
        lines = _git(root, "show", f"{commit}:./{path.as_posix()}")
        return None if lines is None else "\n".join(lines)

    metrics = {stage: text for stage in STAGES if (text := show(paths.metrics(stage))) is not None}
    if not metrics:
        raise InputError(f"`{name}` has no metrics/: it is from before a run, or they were not committed")
    lock = parse_params(show(Path("dvc.lock")) or "stages: {}", Path("dvc.lock"))
    return Run(
        name=name,
        params=_flat(show(paths.PARAMS) or "", paths.PARAMS),
        metrics={stage: json.loads(text) for stage, text in metrics.items()},
        files=_cached(lock, lambda md5: root / CACHE / md5[:2] / md5[2:]),
    )


def _cached(lock: Mapping[str, Any], place: Callable[[str], Path]) -> dict[Path, Path]:
    """The artifacts of a lock file that are in the cache, members of folders included."""
    found: dict[Path, Path] = {}
    for stage in lock["stages"].values():
        for out in stage.get("outs", []):
            path, blob = Path(out["path"]), place(out.get("md5", "-"))
            if not blob.is_file():
                continue
            if out["md5"].endswith(".dir"):
                members = json.loads(blob.read_bytes())
                found |= {path / item["relpath"]: file for item in members if (file := place(item["md5"])).is_file()}
            else:
                found[path] = blob
    return found


def _flat(text: str, path: Path) -> dict[str, Any]:
    """Dotted key -> value of a params file; lists stay whole."""
    return dict(_leaves(parse_params(text, path))) if text else {}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _git(root: Path, *arguments: str) -> list[str] | None:
    """The lines that a git command prints, or None where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("git is not installed: name folders instead of revisions") from None
    return done.stdout.splitlines() if done.returncode == 0 else None
