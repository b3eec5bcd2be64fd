"""Finished runs, wherever they lie: a folder, a git revision, a DVC experiment.

An experiment is a git commit that no branch holds, and an artifact of an earlier run lies in DVC's cache under the
MD5 that `dvc.lock` of its commit names: both are read here, and nothing is checked out.

Metrics lie beside each other in git, whether their stages ran together or not: an experiment that stopped early, or a
parameter edited since, leaves those of another run. So a stage counts only where what it read is what the stages before
it wrote and what params.yaml says now.
"""

import functools
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf import paths
from pgolf.artifacts import read_json
from pgolf.errors import InputError
from pgolf.params import dotted, parse_params

LOCK = Path("dvc.lock")
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
    """Stage -> its flat metrics, for the stages that finished with these parameters."""
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


def same_score(run: Run, losses: Mapping[str, Any]) -> bool:
    """Whether saved losses, by their metadata, are of the artifact that the run's score is of."""
    return bool(losses["inputs"].get("artifact") == run.metrics.get("evaluate", {}).get("artifact_sha256"))


def _from_folder(name: str, folder: Path) -> Run:
    root = folder.parent if folder.resolve().name == "metrics" else folder
    places = {stage: (root / paths.metrics(stage), folder / f"{stage}.json") for stage in STAGES}
    present = {stage: next((path for path in both if path.is_file()), None) for stage, both in places.items()}
    found = {stage: path for stage, path in present.items() if path}
    if not found:
        raise InputError(f"{folder} holds no metrics: name the folder of a run, or its metrics folder")
    texts = {path: (root / path).read_bytes() for path in (paths.PARAMS, LOCK) if (root / path).is_file()}
    params = parse_params(texts[paths.PARAMS].decode(), root / paths.PARAMS) if paths.PARAMS in texts else {}
    lock = _locked(texts.get(LOCK))
    old = others_metrics(lock, params, {stage: path.read_bytes() for stage, path in found.items()})
    shards = [path.relative_to(root) for path in (root / paths.TOKENS).glob("fineweb_val_*.bin")]
    return Run(
        name=name,
        params=dotted(params),
        metrics={stage: read_json(path, stage) for stage, path in found.items() if stage not in old},
        files={artifact: path for artifact in (*ARTIFACTS, *shards) if (path := root / artifact).is_file()},
    )


def _from_commit(name: str, commit: str, root: Path) -> Run:
    def show(path: Path) -> bytes | None:
        return _output(root, "git", "show", f"{commit}:./{path.as_posix()}")

    metrics = {stage: text for stage in STAGES if (text := show(paths.metrics(stage))) is not None}
    if not metrics:
        raise InputError(f"`{name}` has no metrics/: it is from before a run, or they were not committed")
    lock, text = _locked(show(LOCK)), show(paths.PARAMS)
    params = parse_params(text.decode(), paths.PARAMS) if text else {}
    old = others_metrics(lock, params, metrics)
    return Run(
        name=name,
        params=dotted(params),
        metrics={stage: json.loads(text) for stage, text in metrics.items() if stage not in old},
        files=_cached(lock, _cache_folder(root.resolve())),
    )


def others_metrics(lock: Mapping[str, Any], params: Mapping[str, Any], metrics: Mapping[str, bytes]) -> set[str]:
    """The stages whose metrics are another run's: DVC wrote them, but from other inputs than there are.

    `lock`: stage -> its entry in dvc.lock. Metrics that the lock does not name by hash were written without DVC, and
    nothing is known against them.
    """
    makers = {out["path"]: (stage, out.get("md5")) for stage, entry in lock.items() for out in entry.get("outs", [])}

    @functools.cache
    def stale(stage: str) -> bool:
        read = lock[stage].get("params", {}).get(paths.PARAMS.name, {})
        if any(_at(params, key) != value for key, value in read.items()):
            return True
        made = [(dep, *makers[dep["path"]]) for dep in lock[stage].get("deps", []) if dep["path"] in makers]
        return any(dep.get("md5") != md5 or stale(maker) for dep, maker, md5 in made)

    def written(stage: str) -> bool:
        md5 = hashlib.md5(metrics[stage], usedforsecurity=False).hexdigest()
        return makers.get(paths.metrics(stage).as_posix()) == (stage, md5)

    return {stage for stage in metrics if stage in lock and written(stage) and stale(stage)}


def _locked(text: bytes | None) -> Mapping[str, Any]:
    """The stages of a lock file; none where there is no file."""
    stages: Mapping[str, Any] = parse_params(text.decode(), LOCK).get("stages", {}) if text else {}
    return stages


@functools.cache
def _cache_folder(root: Path) -> Path | None:
    """Where DVC keeps files under their MD5; None outside a DVC project."""
    printed = _output(root, sys.executable, "-m", "dvc", "cache", "dir")
    return Path(printed.decode().strip()) / "files/md5" if printed else None


def _cached(lock: Mapping[str, Any], folder: Path | None) -> dict[Path, Path]:
    """The artifacts of a lock file that are in the cache, members of folders included."""
    found: dict[Path, Path] = {}
    if folder is None:
        return found
    for entry in lock.values():
        for out in entry.get("outs", []):
            path, blob = Path(out["path"]), _blob(folder, out.get("md5", "-"))
            if not blob.is_file():
                continue
            if out["md5"].endswith(".dir"):
                members = [(path / m["relpath"], _blob(folder, m["md5"])) for m in json.loads(blob.read_bytes())]
                found |= {member: file for member, file in members if file.is_file()}
            else:
                found[path] = blob
    return found


def _blob(folder: Path, md5: str) -> Path:
    return folder / md5[:2] / md5[2:]


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _git(root: Path, *arguments: str) -> list[str] | None:
    """The lines that a git command prints, or None where it fails."""
    printed = _output(root, "git", *arguments)
    return None if printed is None else printed.decode().splitlines()


def _output(root: Path, *command: str) -> bytes | None:
    """What a command prints, or None where it fails. DVC's report on its use would be made by a process that outlives
    the command and writes into the folder, which is only read here.
    """
    quiet = os.environ | {"DVC_NO_ANALYTICS": "1"}
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=False, env=quiet)
    except FileNotFoundError:
        raise InputError("git is not installed: name folders instead of revisions") from None
    return done.stdout if done.returncode == 0 else None
