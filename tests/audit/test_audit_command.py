"""`pgolf audit` as a command: table, JSON beside it, exit codes."""

import json
from pathlib import Path

import pytest
from submissions import Submission
from typer.testing import CliRunner

from pgolf.audit.verdict import Audit, judge
from pgolf.cli import app
from pgolf.console import console
from pgolf.rules import load_rules


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_clean_folder_exits_with_0_and_leaves_its_findings(tmp_path: Path) -> None:
    folder = Submission.clean().write(tmp_path / "theirs")
    before = sorted(folder.iterdir())
    done = CliRunner().invoke(app, ["audit", "theirs"])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "scratch/audit.json").read_text())
    assert (found["kind"], found["failed"], found["counts"]["fail"]) == ("folder", False, 0)
    assert f"version {load_rules().version}," in found["rules"]
    assert all(set(f) == {"check", "verdict", "evidence", "source"} and all(f.values()) for f in found["findings"])
    assert sorted(folder.iterdir()) == before, "the audit wrote into the folder"


def test_the_table_fits_a_terminal_and_shows_evidence_and_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 100)
    monkeypatch.setattr(type(console), "is_terminal", True)
    Submission.clean(bytes=164_594_398).write(tmp_path / "theirs")
    done = CliRunner().invoke(app, ["audit", "theirs"])
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 100
    first = next(line for line in lines if "bytes.rho" in line)
    assert "fail" in first
    assert len(lines) < 90
    for text in ("PR 2071", "164,594,39", "rules version", "1 fail"):
        assert text in done.output, done.output


def test_a_fail_exits_with_1_after_writing_its_findings(tmp_path: Path) -> None:
    Submission.clean(bytes=164_594_398).write(tmp_path / "theirs")
    done = CliRunner().invoke(app, ["audit", "theirs", "--json", "out/x.json"])
    assert done.exit_code == 1
    found = json.loads((tmp_path / "out/x.json").read_text())
    assert [f["check"] for f in found["findings"] if f["verdict"] == "fail"] == ["bytes.rho"]


def test_losses_of_the_record_are_options(tmp_path: Path) -> None:
    Submission.clean().write(tmp_path / "theirs")
    losses = [2.319, 2.322, 2.324]
    done = CliRunner().invoke(app, ["audit", "theirs", *(f"--base={loss}" for loss in losses)])
    assert done.exit_code == 1
    worse = [f"--base={loss + 0.1}" for loss in losses]
    assert CliRunner().invoke(app, ["audit", "theirs", *worse]).exit_code == 0


def test_a_record_is_named(tmp_path: Path) -> None:
    Submission.clean().write(tmp_path / "theirs")  # about the record's own losses
    assert CliRunner().invoke(app, ["audit", "theirs", "--against", "PR1855"]).exit_code == 1
    found = json.loads((tmp_path / "scratch/audit.json").read_text())
    assert "Welch" in next(f["evidence"] for f in found["findings"] if f["check"] == "seeds.significance")
    assert CliRunner().invoke(app, ["audit", "theirs", "--against", "PR1"]).exit_code == 2


@pytest.mark.parametrize("arguments", [["nothing"], [], ["notes.txt"]], ids=["no folder", "no run", "no artifact"])
def test_what_cannot_be_audited_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert CliRunner().invoke(app, ["audit", *arguments]).exit_code == 2


def test_verdicts_are_three_and_the_worst_counts() -> None:
    findings = (*(judge("a", right, "e", "s") for right in (True, None, False)), judge("b", None, "e", "s"))
    found = Audit(subject="x", kind="run", rules="1", findings=findings)
    assert (found.verdict("a"), found.verdict("b"), found.verdict("c")) == ("fail", "cannot tell", None)
    assert found.failed
    assert not Audit(subject="x", kind="run", rules="1", findings=findings[:2]).failed
    assert [row[0] for row in found.rows()] == ["fail", "cannot tell", "cannot tell", "pass"]
    assert [row[2] for row in found.rows()] == ["e\n(rule: s)"] * 3 + ["e"]
    assert found.summary == "1 fail, 2 cannot tell, 1 pass"
