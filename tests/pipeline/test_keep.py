"""`pgolf keep` and `pgolf restore`: a result comes back byte for byte on a clean clone; a mistake changes nothing."""

import hashlib
import shutil
from pathlib import Path

import pytest
from conftest import call
from projects import as_project, commit, identify

ARTIFACTS = ("train/model.safetensors", "compress/model.pgolf", "verify/train_gpt.py", "tokens/fineweb_val_000000.bin")


def digests(folder: Path) -> dict[str, str]:
    files = [folder / "artifacts" / name for name in ARTIFACTS] + [
        folder / name for name in ("params.yaml", "dvc.lock")
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in [*files, *folder.glob("metrics/*")]}


@pytest.fixture(scope="module")
def hub(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project, its DVC store and its git hub; the result is kept and the branch has moved on."""
    root = tmp_path_factory.mktemp("keep")
    project = as_project(mini_run, root / "project")
    for refused, message in (("a..b", "cannot be the name"), ("first", "there is no DVC remote")):
        assert message in call("pgolf", "keep", refused, cwd=project, code=2)
    call("dvc", "remote", "add", "--default", "store", str(root / "store"), cwd=project)
    assert "not committed, among them `.dvc/config`" in call("pgolf", "keep", "first", cwd=project, code=2)
    commit(project, "a remote")
    call("git", "init", "-q", "--bare", str(root / "hub.git"), cwd=root)
    call("git", "remote", "add", "origin", str(root / "hub.git"), cwd=project)
    assert "train_seed42.log" in call("pgolf", "keep", "first", cwd=project)
    assert call("git", "status", "--porcelain", cwd=project) == ""
    assert "`first` exists" in call("pgolf", "keep", "first", cwd=project, code=2)
    (project / "params.yaml").write_text((project / "params.yaml").read_text().replace("damp: 0.01", "damp: 0.02"))
    commit(project, "another value, not run")
    assert "(quantize" in call("pgolf", "keep", "second", cwd=project, code=2)
    assert call("git", "tag", cwd=project) == "kept/first\n"
    call("git", "push", "-q", "origin", "main", cwd=project)
    return root


@pytest.fixture
def clone(hub: Path, tmp_path: Path) -> Path:
    call("git", "clone", "-q", "--no-tags", "-b", "main", str(hub / "hub.git"), "clone", cwd=tmp_path)
    return identify(tmp_path / "clone")


def test_a_clean_clone_gets_the_result_back(hub: Path, clone: Path, mini_run: Path) -> None:
    assert "first" in call("pgolf", "restore", cwd=clone)
    assert "(known: first)" in call("pgolf", "restore", "third", cwd=clone, code=2)
    before = call("git", "rev-parse", "HEAD", cwd=clone)
    printed = call("pgolf", "restore", "first", cwd=clone)
    assert "losses.safetensors" in printed  # said to be left out
    expected = digests(hub / "project")
    call("git", "checkout", "-q", "kept/first", "--", "params.yaml", "dvc.lock", cwd=hub / "project")
    assert digests(clone) == expected | {name: digests(hub / "project")[name] for name in ("params.yaml", "dvc.lock")}
    assert call("git", "rev-parse", "HEAD", cwd=clone) == before
    log = (clone / "scratch/kept/first/train_seed42.log").read_text().splitlines()
    assert log[-1].startswith("total_eval_time:")
    (clone / "params.yaml").write_text("changed: 1\n")
    assert "`params.yaml` has uncommitted changes" in call("pgolf", "restore", "first", cwd=clone, code=2)


def test_what_goes_wrong_changes_nothing(hub: Path, clone: Path) -> None:
    shutil.move(hub / "store", hub / "elsewhere")
    try:
        for option in ([], ["--code"]):
            printed = call("pgolf", "restore", "first", *option, cwd=clone, code=2)
            assert "the remote lacks artifacts/" in printed
            assert call("git", "status", "--porcelain", cwd=clone) == ""
            assert call("git", "branch", "--show-current", cwd=clone) == "main\n"
    finally:
        shutil.move(hub / "elsewhere", hub / "store")
    edited = clone / "artifacts/report/loss.csv"
    edited.parent.mkdir(parents=True, exist_ok=True)
    edited.write_text("mine\n")
    assert "artifacts/report/ is not what dvc.lock says" in call("pgolf", "restore", "first", cwd=clone, code=2)
    assert edited.read_text() == "mine\n"
    shutil.rmtree(edited.parent)  # the message says: commit it, or delete it
    call("pgolf", "restore", "first", "--code", cwd=clone)
    assert (clone / "logs/train_seed42.log").is_file()
    assert call("git", "describe", "--tags", cwd=clone) == "kept/first\n"
