"""`pgolf compare`: runs from folders, revisions, experiments and records; what may be compared, and what is said."""

import hashlib
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pgolf import artifacts, paths
from pgolf.cli import app
from pgolf.data.shards import shard_name, write_shard
from pgolf.errors import InputError
from pgolf.report.compare import against, find_runs, grouped, published_runs
from pgolf.report.comparison_text import comparison_text, markdown
from pgolf.rules import load_rules
from pgolf.runs import load_run
from pgolf.submit.claims import disclosure
from pgolf.submit.leaderboard import RECORDS
from pgolf.submit.significance import paired_bootstrap, shifted_welch

RULES = load_rules()
TOKENS = np.array([1, 5, 6, 1, 7, 1, 8, 9, 9], np.uint16)
STARTS = [0, 2, 4]
"""First targets of the documents: target i is token i + 1, and a document's own BOS is its first target."""


def make_run(
    root: Path, seed: int, loss: float, *, lr: float = 0.1, tokens: int = 1000, size: int = 3500, saved: bool = True
) -> Path:
    """A run's folder with made-up metrics; `tokens` of `size` bytes have mean `loss`."""
    root.mkdir(parents=True)
    YAML().dump({"train": {"seed": seed, "muon": {"lr": lr}}, "data": {"train": ["a", "b"]}}, root / "params.yaml")
    metrics: dict[str, dict[str, Any]] = {
        "train": {"steps": 10, "train_seconds": 1.5, "hardware": "1x CPU"},
        "compress": {"bytes_header": 5, "bytes_mlp": 90 + seed},
        "evaluate": {
            "val_loss": loss, "val_bpb": loss * tokens / size / math.log(2), "scored_tokens": tokens,
            "scored_bytes": size,
        },
        "verify-size": {"bytes_code": 5, "bytes_model": 95 + seed, "bytes_total": 100 + seed},
    }  # fmt: skip
    for stage, values in metrics.items():
        artifacts.write_json(root / paths.metrics(stage), values)
    if saved:
        (root / paths.TOKENS).mkdir(parents=True)
        write_shard(root / paths.TOKENS / shard_name("val", 0), TOKENS)
        write_shard(root / paths.TOKENS / shard_name("val_bytes", 0), TOKENS)
        artifacts.write_json(root / paths.TOKENS / "manifest.json", {"made": "up"})
        losses = torch.full((8,), loss) + torch.arange(8) / 64 * lr
        artifacts.save(
            root / paths.LOSSES, {"losses": losses}, schema="pgolf.losses", stage="evaluate", params={},
            inputs={"manifest": artifacts.sha256(root / paths.TOKENS / "manifest.json")},
        )  # fmt: skip
    return root


def groups_of(tmp_path: Path, base: list[float], candidate: list[float], **options: Any) -> list[Any]:
    names = [str(make_run(tmp_path / f"a{seed}", seed, loss)) for seed, loss in enumerate(base)]
    names += [str(make_run(tmp_path / f"b{s}", s, loss, lr=0.2, **options)) for s, loss in enumerate(candidate)]
    return grouped(find_runs(names))


def test_seeds_of_one_configuration_are_one_group(tmp_path: Path) -> None:
    base, candidate = groups_of(tmp_path, [2.0, 2.1, 2.2], [1.9, 1.8])
    assert [run.seed for run in base.runs] == [0, 1, 2]
    assert [run.seed for run in candidate.runs] == [0, 1]
    again = make_run(tmp_path / "again", 1, 2.5)  # the same parameters and seed: another version of the code
    assert [len(g.runs) for g in grouped([*base.runs, load_run(str(again))])] == [3, 1]


def test_the_verdict_is_the_rules_test(tmp_path: Path) -> None:
    ours, theirs = [2.000, 2.001, 2.002], [1.994, 1.995, 1.996]
    found = against(*groups_of(tmp_path, ours, theirs), RULES)
    assert found.per_token == shifted_welch(theirs, ours, 0.005)
    assert found.gain == pytest.approx(0.006)
    assert found.verdict.startswith("Better, but no record:")
    assert f"p = {found.per_token.p:.3g}" in found.verdict
    assert found.per_byte == shifted_welch(theirs, ours, 0.005 * 3500 / 1000)  # bytes per token
    wide = against(found.base, found.candidate, RULES, p_value=0.2)
    assert wide.verdict.startswith("Passes the record rule:")
    assert against(found.base, found.candidate, RULES, margin=0.0).verdict.startswith("Passes the record rule:")
    assert against(found.candidate, found.base, RULES).verdict.startswith("Worse:")


def test_a_spread_as_large_as_the_gain_decides_nothing(tmp_path: Path) -> None:
    found = against(*groups_of(tmp_path, [2.0, 2.1, 2.2], [1.9, 2.0, 2.25]), RULES)
    assert found.verdict.startswith("Not distinguishable")


def test_two_seeds_are_fewer_than_usual_and_one_tells_nothing(tmp_path: Path) -> None:
    two = against(*groups_of(tmp_path / "two", [2.0, 2.0001], [1.9, 1.9001]), RULES)
    assert two.verdict.startswith("Passes the record rule, but from 2 seeds where 3 are usual:")
    one = against(*groups_of(tmp_path / "one", [2.0], [1.9]), RULES)
    assert one.per_token is None
    assert one.verdict.startswith("Cannot tell.")
    assert "0.100000 nats per token better" in one.verdict


def test_other_tokenizers_compare_through_bytes_and_it_is_said(tmp_path: Path) -> None:
    """Half the tokens at twice the nats is the same model of the same text."""
    ours = [2.0, 2.01, 2.02]
    groups = groups_of(tmp_path, ours, [2 * loss for loss in ours], tokens=500)
    found = against(*groups, RULES)
    assert found.converted
    assert found.losses[1] == pytest.approx(found.losses[0], rel=1e-12)
    assert found.bootstraps == ()
    text = comparison_text(groups, [found], RULES)
    assert "converted through bytes" in text
    assert "tokenizers differ" in text
    assert "converted through bytes" not in comparison_text(groups[:1], [], RULES)


def test_another_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3,500 bytes of text .* 4,000: these are different texts"):
        against(*groups_of(tmp_path, [2.0], [2.0], size=4000), RULES)


def test_one_group_must_be_one_stream(tmp_path: Path) -> None:
    names = [str(make_run(tmp_path / "a", 0, 2.0)), str(make_run(tmp_path / "b", 1, 2.0, tokens=900))]
    (group,) = grouped(find_runs(names))
    with pytest.raises(InputError, match="different token streams"):
        against(group, group, RULES)


def test_a_tokenizer_with_the_same_counts_is_still_another_one(tmp_path: Path) -> None:
    base, candidate = groups_of(tmp_path, [2.0], [1.9])
    for run, text in ((base.runs[0], b"one"), (candidate.runs[0], b"two")):
        artifacts.write_bytes(Path(run.name) / paths.TOKENIZER, text)
    pair = [grouped(find_runs([group.runs[0].name]))[0] for group in (base, candidate)]
    assert against(*pair, RULES).converted
    assert not against(base, candidate, RULES).converted  # read before: not at hand then


def test_the_bootstrap_takes_runs_of_equal_seed_and_documents_from_the_shards(tmp_path: Path) -> None:
    found = against(*groups_of(tmp_path, [2.0, 2.1], [1.9, 1.8]), RULES, resamples=200)
    assert [name.rpartition("/")[2] for name, _ in found.bootstraps] == ["a0", "a1"]
    losses = [artifacts.load(tmp_path / name / paths.LOSSES, schema="pgolf.losses", made_by="evaluate")[0]["losses"]
              for name in ("b0", "a0")]  # fmt: skip
    expected = paired_bootstrap(losses[0].numpy(), losses[1].numpy(), np.array(STARTS), resamples=200)
    assert found.bootstraps[0][1] == expected
    assert expected.documents == 3
    (tmp_path / "a1" / paths.TOKENS / "manifest.json").write_text("{}")  # losses of other tokens
    names = [run.name for group in (found.base, found.candidate) for run in group.runs]
    assert len(against(*grouped(find_runs(names)), RULES).bootstraps) == 1
    metrics = tmp_path / "a0" / paths.metrics("evaluate")  # a score of another artifact
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"artifact_sha256": "00"}))
    assert against(*grouped(find_runs(names)), RULES).bootstraps == ()


def test_every_run_is_disclosed_with_every_digit(tmp_path: Path) -> None:
    names = [str(make_run(tmp_path / f"s{seed}", seed, 2 + math.pi * 1e-9 * seed)) for seed in range(3)]
    (tmp_path / "s2" / paths.metrics("evaluate")).unlink()
    groups = grouped(find_runs(names))
    text = comparison_text(groups, [], RULES)
    row = next(line for line in text.splitlines() if f"{tmp_path / 's2'} | 2" in line)
    assert row.endswith("| not scored |")
    for value in (2 + math.pi * 1e-9, groups[0].runs[1].value("evaluate", "val_bpb")):
        assert repr(value) in text
    assert "| train.seed | 0 | 1 | 2 |" in text
    assert "| mlp | 90 | 91 | 92 | +2 |" in text
    assert "data.train" not in text.partition("# Metrics")[0]  # equal in all
    assert "not compared" not in text
    more = comparison_text(groups[:1], [], RULES, [load_run(str(make_run(tmp_path / "more", 7, 2.5)))])
    assert f"# Runs made and not compared\n\n* {tmp_path / 'more'}: seed 7, val_bpb {2.5 / 3.5 / math.log(2)!r}" in more


def test_a_published_record_can_be_the_base(tmp_path: Path) -> None:
    record = RECORDS["PR1855"]
    base = grouped(find_runs(["PR1855"]))[0]
    assert [run.seed for run in base.runs] == [42, 0, 1234]
    runs = published_runs("better", record)
    for run in runs:
        run.metrics["evaluate"]["val_loss"] -= 0.02
        run.metrics["evaluate"]["val_bpb"] *= run.metrics["evaluate"]["val_loss"] / (
            run.metrics["evaluate"]["val_loss"] + 0.02
        )
    found = against(base, grouped(runs)[0], RULES)
    assert not found.converted
    assert found.verdict.startswith("Passes the record rule:")
    assert against(base, base, RULES).verdict.startswith("Not distinguishable")


def test_a_submission_folder_is_a_group_of_its_claims(tmp_path: Path) -> None:
    claims = {"seed_results": {"42": {"val_loss": 2.3, "val_bpb": 1.05, "artifact_bytes": 7}}}
    artifacts.write_json(tmp_path / "submission.json", claims)
    (run,) = find_runs([str(tmp_path)])
    assert (run.seed, run.value("evaluate", "val_bpb"), run.value("verify-size", "bytes_total")) == (42, 1.05, 7)
    artifacts.write_json(tmp_path / "submission.json", {"author": "x"})
    with pytest.raises(InputError, match="seed_results"):
        find_runs([str(tmp_path)])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits and one experiment, with the losses of the first commit only in DVC's cache, which clones share."""
    root = make_run(tmp_path / "repo", 1, 2.0)
    artifacts.write_bytes(root / ".dvc/config", b"[cache]\n    dir = ../../shared\n")

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.invalid", *arguments]
        return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(message: str) -> str:
        git("add", "params.yaml", "metrics", "dvc.lock")
        git("commit", "-qm", message)
        return git("rev-parse", "HEAD")

    def store(data: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(data).hexdigest() + suffix
        artifacts.write_bytes(tmp_path / "shared/files/md5" / md5[:2] / md5[2:], data)
        return md5

    git("init", "-q")
    members = [{"md5": store(path.read_bytes()), "relpath": path.name} for path in (root / paths.TOKENS).iterdir()]
    outs = [
        {"path": str(paths.LOSSES), "md5": store((root / paths.LOSSES).read_bytes())},
        {"path": str(paths.TOKENS), "md5": store(json.dumps(members).encode(), ".dir")},
        {"path": str(paths.ARTIFACT), "md5": "0" * 32},
    ]
    YAML().dump({"schema": "2.0", "stages": {"evaluate": {"cmd": "x", "outs": outs}}}, root / "dvc.lock")
    commit("first")
    metrics = json.loads((root / paths.metrics("evaluate")).read_text())
    artifacts.write_json(
        root / paths.metrics("evaluate"), metrics | {"val_loss": 3.0, "val_bpb": 3 / 3.5 / math.log(2)}
    )
    git("update-ref", "refs/exps/ab/" + "c" * 38 + "/happy-dog", commit("second"))
    git("reset", "-q", "--hard", "HEAD~1")
    for path in (paths.LOSSES, paths.TOKENS / "manifest.json"):
        (root / path).unlink()
    return root


def test_revisions_and_experiments_are_read_without_a_checkout(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does DVC leave a process that would write into the folder later."""
    run, quiet = subprocess.run, []
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *command, **how: (quiet.append(how["env"]["DVC_NO_ANALYTICS"]), run(*command, **how))[1],
    )
    before = sorted(path for path in repository.rglob("*") if ".git/" not in str(path))
    head, experiment = find_runs(["HEAD", "happy-dog"], repository)
    assert (head.value("evaluate", "val_loss"), experiment.value("evaluate", "val_loss")) == (2.0, 3.0)
    assert head.params["train.muon.lr"] == 0.1
    assert paths.ARTIFACT not in head.files  # named by the lock, not in the cache
    loaded, _ = artifacts.load(head.file(paths.LOSSES), schema="pgolf.losses", made_by="evaluate")
    assert loaded["losses"][0] == 2.0
    found = against(*grouped([head, experiment]), RULES)
    assert found.bootstraps[0][1].documents == 3
    assert sorted(path for path in repository.rglob("*") if ".git/" not in str(path)) == before
    assert set(quiet) == {"1"}
    assert load_run("workspace", repository).value("evaluate", "val_loss") == 2.0
    with pytest.raises(InputError, match=r"no artifacts/compress/model\.pgolf here"):
        head.file(paths.ARTIFACT)


def test_an_experiment_without_metrics_is_named_and_left_out(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    empty = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"  # git's tree without files
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    made = subprocess.run(
        ["git", *identity, "commit-tree", empty, "-m", "x"], check=True, capture_output=True, text=True
    )
    ref = "refs/exps/cd/" + "e" * 38 + "/sad-cat"
    subprocess.run(["git", "update-ref", ref, made.stdout.strip()], check=True)
    done = CliRunner().invoke(app, ["compare", "HEAD"])
    assert done.exit_code == 0, done.output
    assert "* happy-dog: seed 1, val_bpb" in done.output
    assert "left out: `sad-cat` has no metrics/" in done.output


def test_metrics_of_stages_that_did_not_run_are_not_the_runs(tmp_path: Path) -> None:
    """As after `dvc exp run -S train.seed=8 score`: new weights, and beside them the score of the old ones."""
    root = make_run(tmp_path / "run", 7, 2.0)

    def out(path: Path | str, md5: str = "") -> dict[str, str]:
        return {"path": str(path), "md5": md5 or hashlib.md5((root / path).read_bytes()).hexdigest()}

    train = {"params": {"params.yaml": {"train": {"seed": 7, "muon": {"lr": 0.1}}}},
             "outs": [out(paths.MODEL, "1"), out(paths.metrics("train"))]}  # fmt: skip
    pack = {"deps": [out(paths.MODEL, "1"), out("code.py", "9")],
            "outs": [out(paths.ARTIFACT, "2"), out(paths.metrics("compress"))]}  # fmt: skip
    score = {"deps": [out(paths.ARTIFACT, "2")], "outs": [out(paths.metrics("evaluate"))]}
    lock = {"schema": "2.0", "stages": {"train": train, "compress": pack, "evaluate": score}}

    def stages() -> set[str]:
        YAML().dump(lock, root / "dvc.lock")
        return {*load_run(str(root)).metrics}

    assert stages() == {"train", "compress", "evaluate", "verify-size"}  # the last without DVC
    train["outs"][0]["md5"] = "3"  # trained again
    assert stages() == {"train", "verify-size"}
    run = load_run(str(root / "metrics"))
    assert not run.finished
    assert disclosure(run).endswith("seed 7, not scored")
    train["outs"][0]["md5"] = "1"
    (root / "params.yaml").write_text((root / "params.yaml").read_text().replace("seed: 7", "seed: 8"))
    assert stages() == {"verify-size"}
    for stage in ("train", "evaluate"):  # `pgolf run` after the edit
        path = root / paths.metrics(stage)
        path.write_text(path.read_text() + "\n")
    assert stages() == {"train", "evaluate", "verify-size"}


def test_a_metrics_folder_is_enough(tmp_path: Path) -> None:
    root = make_run(tmp_path / "run", 3, 2.0)
    assert load_run(str(root / "metrics")).seed == 3
    bare = tmp_path / "elsewhere"
    (root / "metrics").rename(bare)
    run = load_run(str(bare))
    assert (run.seed, run.value("evaluate", "val_loss"), run.params) == (None, 2.0, {})


def test_what_is_no_run_is_refused(repository: Path, tmp_path: Path) -> None:
    for name in ("no-such-thing", "--all", "HEAD:params.yaml"):
        with pytest.raises(InputError, match="no folder, and git knows no revision"):
            load_run(name, repository)
    with pytest.raises(InputError, match="no metrics"):
        load_run(str(tmp_path / "repo/artifacts"))
    run = load_run("HEAD", repository)
    with pytest.raises(InputError, match=r"no metric `prequant_bpb` of `score`: run `pgolf score`"):
        run.value("score", "prequant_bpb")


def test_a_table_keeps_digits_and_bars() -> None:
    assert markdown(["a", "b"], [[0.1 + 0.2, 1234567], [None, "x|y"]]).splitlines()[2:] == [
        "| 0.30000000000000004 | 1,234,567 |",
        "| - | x\\|y |",
    ]
    assert markdown(["a"], []) == "None."
