"""What `pgolf keep` and `pgolf restore` do in git; DVC answers from a table here, and truly in test_guide.py."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import call
from projects import commit, identify

from pgolf import keep as module
from pgolf.errors import InputError
from pgolf.keep import Kept, keep, kept, restore

STAGE = "stages:\n  train:\n    cmd: x\n    outs:\n    - model\n    - losses:\n        push: false\n"
ANSWERS = {"config": "store", "status": "{}", "data": "{}"}


class Project:
    """A repository with two commits and a hub; the second commit is kept as `first`, the first one checked out."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hub = folder / "project", folder / "hub.git"
        self.folder.mkdir()
        self.git("init", "-q", "-b", "main")
        identify(self.folder)
        self.files: list[dict[str, str]] = []
        self.write(".gitignore", "/scratch/\n")
        self.version(1)
        self.version(2, **{"metrics/train.json": '{"train_loss": 2}', "logs/train_seed1.log": "of an older result"})
        self.git("init", "-q", "--bare", str(self.hub))
        self.git("remote", "add", "origin", str(self.hub))

    def git(self, *arguments: str) -> str:
        return call("git", *arguments, cwd=self.folder)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def version(self, number: int, **more: str) -> None:
        outs = "".join(f"    - path: {name}\n      md5: '{number}'\n" for name in ("model", "losses"))
        files = {"params.yaml": f"train:\n  seed: 42\n  steps: {number}\n", "dvc.yaml": STAGE,
                 "dvc.lock": f"schema: '2.0'\nstages:\n  train:\n    cmd: x\n    outs:\n{outs}",
                 "metrics/evaluate.json": json.dumps({"val_bpb": number}), **more}  # fmt: skip
        for name, text in files.items():
            self.write(name, text)
        commit(self.folder, str(number))

    def state(self) -> dict[str, str]:
        """Everything that `restore` may write, and where HEAD is."""
        names = ["params.yaml", "dvc.lock", *(f"metrics/{path.name}" for path in self.folder.glob("metrics/*"))]
        return {name: (self.folder / name).read_text() for name in names} | {"HEAD": self.git("rev-parse", "HEAD")}

    def keep(self, name: str = "first", publish: str | None = None) -> Kept:
        return keep(name, publish=publish, root=self.folder)

    def restore(self, name: str = "first", publish: str | None = None, code: bool = False) -> Kept:
        return restore(name, publish=publish, code=code, root=self.folder)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """First word of a DVC command -> what it prints; a command without an answer prints nothing."""
    table = dict(ANSWERS)

    def dvc(root: Path, *arguments: str, may_fail: bool = False) -> str:
        if table.get(arguments[0]) == "fails":
            raise InputError(f"dvc {arguments[0]} failed")
        return table.get(" ".join(arguments), table.get(arguments[0], ""))

    monkeypatch.setattr(module, "_dvc", dvc)
    monkeypatch.setattr(module, "_log", lambda run: (f"seed {run.seed}\n", ""))
    return table


@pytest.fixture
def project(answers: dict[str, str], tmp_path: Path) -> Project:
    made = Project(tmp_path)
    second, done = made.state(), made.keep()
    assert (done.artifacts, done.left_out, done.log) == (["model"], ["losses"], "logs/train_seed42.log")
    assert done.published == "origin"
    assert call("git", "tag", cwd=made.hub) == "kept/first\n"
    assert made.git("status", "--porcelain") == ""
    assert made.git("ls-tree", "-r", "--name-only", "kept/first", "logs") == "logs/train_seed42.log\n"
    made.git("checkout", "-q", "-b", "older", "HEAD~1")
    made.files = [made.state(), second]
    return made


def test_parameters_lock_and_metrics_come_back_and_the_log_of_the_run(project: Project) -> None:
    older, second = project.files
    project.git("tag", "--delete", "kept/first")  # as in a clone that did not fetch tags
    done = project.restore()
    assert project.state() == second | {"HEAD": older["HEAD"]}
    assert (project.folder / done.log).read_text() == "seed 42\n"


def test_code_is_checked_out_on_no_branch(project: Project) -> None:
    project.restore(code=True)
    assert project.git("rev-parse", "HEAD") == project.git("rev-parse", "kept/first^{commit}")
    assert project.git("branch", "--show-current") == ""
    assert (project.folder / "logs/train_seed42.log").is_file()


@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("answer", [{"fetch": "fails"}, {"config": ""}])
def test_what_fails_on_the_way_is_taken_back(
    project: Project, answers: dict[str, str], answer: dict[str, str], code: bool
) -> None:
    answers |= answer
    with pytest.raises(InputError, match=r"fetch failed|no DVC remote"):
        project.restore(code=code)
    assert project.state() == project.files[0]
    assert project.git("status", "--porcelain") == ""
    assert project.git("branch", "--show-current") == "older\n"


def test_what_the_remote_lacks_is_named(project: Project, answers: dict[str, str]) -> None:
    answers["data"] = json.dumps({"not_in_cache": ["model", "losses"]})
    with pytest.raises(InputError, match="the remote lacks model: name the one"):
        project.restore()
    assert project.state() == project.files[0]
    answers["status --cloud --json"] = '{"model": "missing"}'
    with pytest.raises(InputError, match="the remote lacks model, and so does the cache"):
        project.keep("second")
    assert kept(root=project.folder) == ["first"]


def test_another_pipeline_needs_its_code(project: Project) -> None:
    for changed in (STAGE + "    - more\n", STAGE.replace("push: false", "push: true")):
        project.write("dvc.yaml", changed)
        commit(project.folder, "another pipeline")
        before = project.state()
        with pytest.raises(InputError, match=r"writes other files than dvc\.yaml here: add --code"):
            project.restore()
        assert project.state() == before
    project.restore(code=True)


def test_what_would_be_lost_is_refused(project: Project, answers: dict[str, str]) -> None:
    mine = project.write("params.yaml", "mine\n")
    for code in (False, True):
        with pytest.raises(InputError, match=r"`params\.yaml` has uncommitted changes"):
            project.restore(code=code)
    assert mine.read_text() == "mine\n"
    project.git("checkout", "params.yaml")
    mine = project.write("metrics/train.json", "mine\n")  # the tag has one, this commit has none
    for code in (False, True):
        with pytest.raises(InputError, match=r"metrics/train\.json"):
            project.restore(code=code)
    assert mine.read_text() == "mine\n"
    mine.unlink()
    answers["data"] = json.dumps({"uncommitted": {"modified": ["model"]}})
    with pytest.raises(InputError, match=r"model is not what dvc\.lock says"):
        project.restore()
    assert project.state() == project.files[0]


REFUSED: dict[str, tuple[Callable[[Project, dict[str, str]], object], str]] = {
    "a..b": (lambda project, answers: None, "cannot be the name of a git tag"),
    "first": (lambda project, answers: None, "`first` exists"),
    "dirty": (lambda project, answers: project.write("new.py", ""), r"1 files are not committed, among them `new\.py`"),
    "stale": (lambda project, answers: answers.update(status='{"train": []}'), r"not that of the files here \(train\)"),
    "nowhere": (lambda project, answers: answers.update(config="", status="no JSON"), "there is no DVC remote"),
    "unheard": (lambda project, answers: project.git("config", "remote.origin.pushurl", "/none"), "`git push` failed"),
    "unpushed": (lambda project, answers: answers.update(push="fails"), "dvc push failed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_leaves_no_tag(project: Project, answers: dict[str, str], name: str) -> None:
    change, message = REFUSED[name]
    change(project, answers)
    with pytest.raises(InputError, match=message):
        project.keep(name)
    assert project.git("tag") == call("git", "tag", cwd=project.hub) == "kept/first\n"


def test_the_git_remote_is_asked_and_an_unknown_one_refused(project: Project) -> None:
    with pytest.raises(InputError, match=r"no kept result `third` \(known: first\)"):
        project.restore("third")
    for use in (project.keep, project.restore):
        with pytest.raises(InputError, match=r"no git remote `typo` \(known: origin\)"):
            use("third", publish="typo")
    project.git("remote", "set-url", "origin", "/none")
    for call_it in (lambda: kept(root=project.folder), lambda: project.restore("third"), lambda: project.keep("third")):
        with pytest.raises(InputError, match="`git ls-remote` failed"):
            call_it()
    project.restore("first")  # the tag is here
    with pytest.raises(InputError, match=r"no git remote `typo`"):
        project.restore("first", publish="typo")
    project.git("remote", "remove", "origin")
    project.git("checkout", "-q", "-f", "main")
    assert project.keep("third").published == "no git remote"
    assert kept(root=project.folder) == ["first", "third"]


def test_without_git_it_says_so(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for use in (project.keep, project.restore):
        with pytest.raises(InputError, match="git is not installed"):
            use()
