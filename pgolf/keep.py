"""Results for good: `keep` stores one under a git tag and its artifacts in a DVC remote, `restore` brings it back.

The tag `kept/NAME` names a commit beside the branches: the one that is checked out, with the run's log added. It holds
code, params.yaml, dvc.lock and metrics; the artifacts of dvc.lock go to the remote. Outputs with `push: false` stay
behind, their stage writes them again. DVC says success where cached files are missing, so both ways are checked after.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgolf import paths
from pgolf.errors import InputError
from pgolf.params import parse_params
from pgolf.rules import load_rules
from pgolf.runs import LOCK, Run, load_run
from pgolf.submit.evidence import gather
from pgolf.submit.record import readable_source
from pgolf.submit.run_log import run_log

TAGS = "refs/tags/kept/"
LOG = "logs/train_seed{seed}.log"
"""Where the log lies in the tag's commit."""
PIPELINE = Path("dvc.yaml")
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
    published: str | None = None
    """The git remote that a new tag went to, where there is one."""


def keep(name: str, remote: str | None = None, publish: str | None = None, root: Path = Path()) -> Kept:
    """Store the committed run under `name`: artifacts to the DVC `remote`, then the tag, also on the git remote.

    The git remote `publish` is `origin` where it exists. InputError for a name that exists or is none, uncommitted
    changes, stages that `dvc repro` would run, and a missing remote; then there is no tag, here or there.
    """
    tag, hub = _tag(name, root), _hub(publish, root)
    if name in kept(publish, root):
        raise InputError(
            f"`{name}` exists: choose another name (`pgolf restore` lists them), kept results do not change"
        )
    if changed := _git(root, "status", "--porcelain").splitlines():
        raise InputError(
            f"{len(changed)} files are not committed, among them `{changed[0][3:]}`: `git commit` them first"
        )
    where = _remote(remote, root)
    if stale := json.loads(_dvc(root, "status", "--json")):
        raise InputError(
            f"the run is not that of the files here ({', '.join(stale)}): `dvc repro`, then commit dvc.lock"
        )
    lock = parse_params((root / LOCK).read_text("utf-8"), LOCK) if (root / LOCK).is_file() else {"stages": {}}
    pushed, left_out = _outputs(lock, _declared((root / PIPELINE).read_text("utf-8")))
    _dvc(root, "push", "--quiet", *where)
    if missing := json.loads(_dvc(root, "status", "--cloud", "--json", *where)):
        raise InputError(f"the remote lacks {', '.join(missing)}, and so does the cache: run `dvc repro --force`")
    run = load_run("workspace", root)
    log, problem = _log(run)
    place = LOG.format(seed=run.seed)
    commit = _commit(root, {place: log} if log else {}, f"Kept result {name}")
    score = ", ".join(f"{key} {run.metrics.get(stage, {}).get(key, '-')}" for stage, key in
                      (("evaluate", "val_bpb"), ("verify-size", "bytes_total")))  # fmt: skip
    _git(root, "tag", "--annotate", "--message", score, tag.removeprefix("refs/tags/"), commit)
    if hub:
        try:
            _git(root, "push", "--quiet", hub, tag)
        except InputError:
            _git(root, "tag", "--delete", tag.removeprefix("refs/tags/"))
            raise
    return Kept(tag, commit, pushed, left_out, place if log else problem, hub or "no git remote")


def restore(
    name: str, remote: str | None = None, publish: str | None = None, *, code: bool = False, root: Path = Path()
) -> Kept:
    """Bring a kept result back: params.yaml, dvc.lock and metrics as files, artifacts, the log under scratch/kept.

    With `code` the whole commit is checked out instead, on no branch. Files of outputs that the remote never had are
    deleted where they are of another run. InputError, and nothing changed, for an unknown name, changes that would be
    lost, another pipeline than the one here, and artifacts that the remote lacks.
    """
    tag = _tag(name, root)
    _fetch(tag, publish, root)
    _refuse_loss(code, root)
    commit = _git(root, "rev-parse", f"{tag}^{{commit}}").strip()
    files = {path: _git(root, "show", f"{commit}:./{path}") for path in (LOCK, PIPELINE, paths.PARAMS)}
    declared = _declared(files[PIPELINE])
    if not code and declared != _declared((root / PIPELINE).read_text("utf-8")):
        raise InputError(f"the pipeline of `{name}` writes other files than dvc.yaml here: add --code")
    pushed, left_out = _outputs(parse_params(files[LOCK], LOCK), declared)
    back = _replace_files(commit, code, root)
    try:
        _dvc(root, "fetch", "--quiet", *_remote(remote, root), *pushed)
        state = json.loads(_dvc(root, "data", "status", "--json"))
        absent = {path.rstrip("/") for path in state.get("not_in_cache", [])}
        if missing := [path for path in pushed if path in absent]:
            raise InputError(f"the remote lacks {', '.join(missing)}: name the one that has them with --remote")
        _dvc(root, "checkout", "--quiet", *(path for path in (*pushed, *left_out) if path not in absent))
    except BaseException:
        back()
        raise
    left_out = [path for path in left_out if path in absent]
    _remove([path for path in _edited(state) if path in left_out], root)
    seed = parse_params(files[paths.PARAMS], paths.PARAMS).get("train", {}).get("seed")
    return Kept(tag, commit, pushed, left_out, _write_log(name, commit, LOG.format(seed=seed), root))


def _replace_files(commit: str, code: bool, root: Path) -> Callable[[], object]:
    """Put the files of a commit here, or check it out; returns what takes that back."""
    if code:
        before = _git(root, "symbolic-ref", "--quiet", "--short", "HEAD", may_fail=True).strip()
        before = before or _git(root, "rev-parse", "HEAD").strip()
        _git(root, "checkout", "--quiet", "--detach", commit)
        return lambda: _git(root, "checkout", "--quiet", before)
    places = [str(path) for path in FILES]
    tracked = _git(root, "ls-files", "-z", "--", *places).split("\0")[:-1]
    new = {*_git(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", *places).split("\0")[:-1]} - {*tracked}

    def back() -> None:
        if tracked:
            _git(root, "restore", "--", *tracked)
        for path in new:
            (root / path).unlink(missing_ok=True)

    _git(root, "restore", f"--source={commit}", "--", *places)
    return back


def kept(publish: str | None = None, root: Path = Path()) -> list[str]:
    """The names of all kept results, here and on the git remote; InputError where that does not answer."""
    listed = _git(root, "for-each-ref", "--format=%(refname)", TAGS).splitlines()
    if hub := _hub(publish, root):
        there = _git(root, "ls-remote", "--tags", "--refs", hub, f"{TAGS}*").splitlines()
        listed += [line.split("\t")[1] for line in there]
    return sorted({name.removeprefix(TAGS) for name in listed})


def _tag(name: str, root: Path) -> str:
    tag = TAGS + name
    if _git(root, "check-ref-format", "--normalize", tag, may_fail=True).strip() != tag:
        raise InputError(f"`{name}` cannot be the name of a git tag: use letters, digits and dashes")
    _git(root, "rev-parse", "--verify", "HEAD")
    return tag


def _hub(publish: str | None, root: Path) -> str | None:
    """The git remote of the tags: the one that is asked for, else `origin` where it exists."""
    known = _git(root, "remote").split()
    if publish and publish not in known:
        raise InputError(f"there is no git remote `{publish}` (known: {', '.join(known) or 'none'})")
    return publish or ("origin" if "origin" in known else None)


def _fetch(tag: str, publish: str | None, root: Path) -> None:
    """Get a tag that is not here; InputError where nobody has it."""
    hub = _hub(publish, root)
    if _git(root, "for-each-ref", tag):
        return
    known = kept(publish, root)
    if tag.removeprefix(TAGS) not in known:
        raise InputError(f"there is no kept result `{tag.removeprefix(TAGS)}` (known: {', '.join(known) or 'none'})")
    _git(root, "fetch", "--quiet", "--no-tags", str(hub), f"{tag}:{tag}")


def _refuse_loss(code: bool, root: Path) -> None:
    """InputError where files that are about to be replaced hold changes that nothing else holds."""
    untracked, places = ("no", []) if code else ("all", [str(path) for path in FILES])  # git checkout looks itself
    if changed := _git(root, "status", "--porcelain", f"--untracked-files={untracked}", "--", *places).splitlines():
        raise InputError(
            f"`{changed[0][3:]}` has uncommitted changes: `git commit` them, or take them back (`git restore`) first"
        )
    if edited := _edited(json.loads(_dvc(root, "data", "status", "--json"))):
        raise InputError(f"{edited[0]} is not what dvc.lock says and would be lost: `dvc commit` it, or delete it")


def _edited(state: Mapping[str, Any]) -> list[str]:
    """Outputs in an answer of `dvc data status` that are here with another content than dvc.lock names."""
    found = state.get("uncommitted", {})
    return [path.rstrip("/") for path in (*found.get("modified", []), *found.get("added", []))]


def _remove(names: list[str], root: Path) -> None:
    for path in (root / name for name in names):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _declared(pipeline: str) -> dict[str, bool]:
    """The cached outputs of a pipeline's text -> whether they are pushed."""
    found: dict[str, bool] = {}
    for stage in parse_params(pipeline, PIPELINE)["stages"].values():
        for out in stage.get("outs", []):
            listed = out if isinstance(out, dict) else {out: {}}
            found |= {path: options.get("push", True) for path, options in listed.items()}
    return found


def _outputs(lock: Mapping[str, Any], declared: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """The cached outputs of a lock file, those that are pushed and those that are not."""
    locked = [out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])]
    cached = [path for path in locked if path in declared]  # metrics are in git
    return [path for path in cached if declared[path]], [path for path in cached if not declared[path]]


def _log(run: Run) -> tuple[str, str]:
    """The log of a run, and if that is empty why."""
    try:
        (found,) = gather([run])
        source = readable_source(run.file(paths.PACKED_CODE).read_bytes())
        return run_log(found, source, load_rules()), ""
    except InputError as error:
        return "", f"none: {error}"


def _write_log(name: str, commit: str, place: str, root: Path) -> str:
    text = _git(root, "show", f"{commit}:./{place}", may_fail=True)
    if not text:
        return "none"
    target = root / paths.SCRATCH / "kept" / name / Path(place).name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, "utf-8")
    return str(target.relative_to(root))


def _commit(root: Path, texts: Mapping[str, str], message: str) -> str:
    """A commit on top of HEAD with these logs and no others; index, branch and working tree stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        own = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        _git(root, "read-tree", "HEAD", env=own)
        _git(root, "rm", "--cached", "--quiet", "--ignore-unmatch", "--", LOG.format(seed="*"), env=own)
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
