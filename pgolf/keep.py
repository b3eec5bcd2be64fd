"""Results for good: `keep` stores one under a git tag and its artifacts in a DVC remote, `restore` brings it back.

The tag `kept/NAME` names a commit beside the branches: the one that is checked out, with the run's log added. It holds
code, params.yaml, dvc.lock and metrics; the artifacts of dvc.lock go to the remote. Outputs with `push: false` stay
behind, their stage writes them again. DVC says success where cached files are missing, so both ways are checked after.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgolf import paths
from pgolf.errors import InputError
from pgolf.params import parse_params
from pgolf.rules import load_rules
from pgolf.runs import load_run
from pgolf.submit.evidence import gather
from pgolf.submit.record import readable_source
from pgolf.submit.run_log import run_log

TAGS = "refs/tags/kept/"
LOG = "logs/train_seed{seed}.log"
"""Where the log lies in the tag's commit."""
LOCK, PIPELINE = Path("dvc.lock"), Path("dvc.yaml")
FILES = (paths.PARAMS, LOCK, Path("metrics"))
"""What `restore` writes beside artifacts."""


class Kept(NamedTuple):
    """A result that was stored or brought back."""

    tag: str
    commit: str
    artifacts: list[str]
    """What the remote holds."""
    left_out: list[str]
    """Outputs with `push: false`."""
    log: str
    """Path of the log, or why there is none."""


def keep(name: str, remote: str | None = None, publish: str = "origin", root: Path = Path()) -> Kept:
    """Store the committed run under `name`: artifacts to the DVC `remote`, then the tag, also on the git remote.

    The git remote `publish` is used where it exists. InputError for a name that exists or is none, uncommitted
    changes, stages that `dvc repro` would run, and a missing remote; then there is no tag, here or there.
    """
    tag = _tag(name, root)
    if _find(tag, publish, root):
        raise InputError(
            f"`{name}` exists: choose another name (`pgolf restore` lists them), kept results do not change"
        )
    if changed := _git(root, "status", "--porcelain").splitlines():
        raise InputError(
            f"{len(changed)} files are not committed, among them `{changed[0][3:]}`: `git commit` them first"
        )
    if stale := json.loads(_dvc(root, "status", "--json")):
        raise InputError(
            f"the run is not that of the files here ({', '.join(stale)}): `dvc repro`, then commit dvc.lock"
        )
    lock = parse_params((root / LOCK).read_text("utf-8"), LOCK) if (root / LOCK).is_file() else {"stages": {}}
    pushed, left_out = _outputs(lock, parse_params((root / PIPELINE).read_text("utf-8"), PIPELINE))
    seed, log, problem = _log(root)
    where = _remote(remote, root)
    _dvc(root, "push", "--quiet", *where)
    if missing := json.loads(_dvc(root, "status", "--cloud", "--json", *where)):
        raise InputError(f"the remote lacks {', '.join(missing)}, and so does the cache: run `dvc repro --force`")
    commit = _commit(root, {LOG.format(seed=seed): log} if log else {}, f"Kept result {name}")
    metrics = load_run("workspace", root).metrics
    score = ", ".join(f"{key} {metrics.get(stage, {}).get(key, '-')}" for stage, key in
                      (("evaluate", "val_bpb"), ("verify-size", "bytes_total")))  # fmt: skip
    _git(root, "tag", "--annotate", "--message", score, tag.removeprefix("refs/tags/"), commit)
    if publish in _git(root, "remote").split():
        try:
            _git(root, "push", "--quiet", publish, tag)
        except InputError:
            _git(root, "tag", "--delete", tag.removeprefix("refs/tags/"))
            raise
    return Kept(tag, commit, pushed, left_out, LOG.format(seed=seed) if log else problem)


def restore(
    name: str, remote: str | None = None, publish: str = "origin", *, code: bool = False, root: Path = Path()
) -> Kept:
    """Bring a kept result back: params.yaml, dvc.lock and metrics as files, artifacts, the log under scratch/kept.

    With `code` the whole commit is checked out instead, on no branch. InputError, and nothing changed, for an unknown
    name, changes that would be lost, another pipeline than the one here, and artifacts that the remote lacks.
    """
    tag = _tag(name, root)
    if not _find(tag, publish, root):
        known = ", ".join(kept(publish, root)) or "none"
        raise InputError(f"there is no kept result `{name}` (known: {known})")
    _fetch(tag, publish, root)
    _refuse_loss(code, root)
    commit = _git(root, "rev-parse", f"{tag}^{{commit}}").strip()
    lock, pipeline = (parse_params(_git(root, "show", f"{commit}:./{path}"), path) for path in (LOCK, PIPELINE))
    pushed, left_out = _outputs(lock, pipeline)
    here = parse_params((root / PIPELINE).read_text("utf-8"), PIPELINE)
    if not code and (pushed, left_out) != _outputs(lock, here):
        raise InputError(f"the pipeline of `{name}` writes other files than dvc.yaml here: add --code")
    before = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD", may_fail=True).strip()
    before = before or _git(root, "rev-parse", "HEAD").strip()
    files = [str(path) for path in FILES]
    there = ["checkout", "--quiet", "--detach", commit] if code else ["restore", f"--source={commit}", "--", *files]
    back = ["checkout", "--quiet", before] if code else ["restore", "--", *files]
    try:
        _git(root, *there)
        _dvc(root, "fetch", "--quiet", *_remote(remote, root), *pushed)
        absent = json.loads(_dvc(root, "data", "status", "--json")).get("not_in_cache", [])
        if missing := [path for path in absent if path.rstrip("/") in pushed]:
            raise InputError(f"the remote lacks {', '.join(missing)}: name the one that has them with --remote")
        _dvc(root, "checkout", "--quiet", *pushed)
    except BaseException:
        _git(root, *back)
        raise
    return Kept(tag, commit, pushed, left_out, _write_log(name, commit, root))


def kept(publish: str = "origin", root: Path = Path()) -> list[str]:
    """The names of all kept results, here and on the git remote."""
    listed = _git(root, "for-each-ref", "--format=%(refname)", TAGS).splitlines()
    if publish in _git(root, "remote").split():
        there = _git(root, "ls-remote", "--tags", "--refs", publish, f"{TAGS}*", may_fail=True).splitlines()
        listed += [line.split("\t")[1] for line in there]
    return sorted({name.removeprefix(TAGS) for name in listed})


def _tag(name: str, root: Path) -> str:
    tag = TAGS + name
    if subprocess.run(["git", "check-ref-format", tag], cwd=root, check=False).returncode:
        raise InputError(f"`{name}` cannot be the name of a git tag: use letters, digits and dashes")
    _git(root, "rev-parse", "--verify", "HEAD")
    return tag


def _find(tag: str, publish: str, root: Path) -> bool:
    return tag.removeprefix(TAGS) in kept(publish, root)


def _fetch(tag: str, publish: str, root: Path) -> None:
    if not _git(root, "for-each-ref", tag):
        _git(root, "fetch", "--quiet", "--no-tags", publish, f"{tag}:{tag}")


def _refuse_loss(code: bool, root: Path) -> None:
    """InputError where files that are about to be replaced hold changes that nothing else holds."""
    places = [] if code else [str(path) for path in FILES]
    if changed := _git(root, "status", "--porcelain", "--untracked-files=no", "--", *places).splitlines():
        raise InputError(f"`{changed[0][3:]}` has uncommitted changes: `git commit` or `git restore` it first")
    uncommitted = json.loads(_dvc(root, "data", "status", "--json")).get("uncommitted", {})
    if edited := uncommitted.get("modified", []) + uncommitted.get("added", []):
        raise InputError(f"{edited[0]} is not what dvc.lock says and would be lost: `dvc commit` it, or delete it")


def _outputs(lock: Mapping[str, Any], pipeline: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The cached outputs of a lock file, those that are pushed and those that are not."""
    listed: dict[str, Any] = {}
    for stage in pipeline["stages"].values():
        for out in stage.get("outs", []):
            listed |= out if isinstance(out, dict) else {out: {}}
    locked = [out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])]
    cached = [path for path in locked if path in listed]  # metrics are in git
    pushed = [path for path in cached if listed[path].get("push", True)]
    return pushed, [path for path in cached if path not in pushed]


def _log(root: Path) -> tuple[int | None, str, str]:
    """The seed of the run, its log, and if that is empty why."""
    run = load_run("workspace", root)
    try:
        (found,) = gather([run])
        source = readable_source(run.file(paths.PACKED_CODE).read_bytes())
        return run.seed, run_log(found, source, load_rules()), ""
    except InputError as error:
        return run.seed, "", f"none: {error}"


def _write_log(name: str, commit: str, root: Path) -> str:
    listed = _git(root, "ls-tree", "-r", "--name-only", commit, "--", str(Path(LOG).parent)).splitlines()
    for path in listed:
        target = root / paths.SCRATCH / "kept" / name / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_git(root, "show", f"{commit}:./{path}"), "utf-8")
        return str(target.relative_to(root))
    return "none"


def _commit(root: Path, texts: Mapping[str, str], message: str) -> str:
    """A commit on top of HEAD with further files; index, branch and working tree stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", "HEAD", env=own)
        prefix = _git(root, "rev-parse", "--show-prefix").strip()
        for path, text in texts.items():
            blob = _git(root, "hash-object", "-w", "--stdin", stdin=text).strip()
            _git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{path}", env=own)
        tree = _git(root, "write-tree", env=own).strip()
    return _git(root, "commit-tree", tree, "-p", "HEAD", "-m", message).strip()


def _remote(remote: str | None, root: Path) -> list[str]:
    """The option that names the DVC remote; InputError where there is none."""
    if remote:
        return ["--remote", remote]
    if not _dvc(root, "config", "core.remote", may_fail=True).strip():
        raise InputError(
            "there is no DVC remote to hold the artifacts: `dvc remote add --default store FOLDER-OR-URL`, commit "
            ".dvc/config, or name one with --remote"
        )
    return []


def _git(root: Path, *arguments: str, may_fail: bool = False, stdin: str = "", env: Mapping[str, str] = {}) -> str:
    return _call(root, ["git", *arguments], may_fail, stdin, env)


def _dvc(root: Path, *arguments: str, may_fail: bool = False) -> str:
    return _call(root, [sys.executable, "-m", "dvc", *arguments], may_fail, "", {})


def _call(root: Path, command: list[str], may_fail: bool, stdin: str, env: Mapping[str, str]) -> str:
    """What a command prints; InputError with its last words where it fails, unless it may."""
    try:
        done = subprocess.run(
            command, cwd=root, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **env}
        )
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not installed") from None
    if done.returncode and not may_fail:
        words = " ".join(command[2:] if command[1] == "-m" else command[:2])
        said = " ".join(line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip())
        raise InputError(f"`{words}` failed: {said or done.stdout.strip()}")
    return "" if done.returncode else done.stdout
