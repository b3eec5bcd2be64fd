"""Presets of published systems: an audit finds exactly what each preset says of itself."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgolf.audit.published import audit_preset, expected
from pgolf.cli import app
from pgolf.errors import InputError
from pgolf.presets import expected_verdict, preset_files
from pgolf.rules import load_rules

ROOT = Path(__file__).parents[2]
RULES = load_rules()
SYSTEMS = {name: path for name, path in preset_files(ROOT / "presets").items() if expected_verdict(path)}
CLEAN = """
model: {smear: window}
train: {seconds: 600.0, reserve_seconds: 8.0}
evaluate: {isolate_documents: true, ttt: chunk}
published:
  seeds: [42, 0, 1234]
  bytes_total: 15907550
  val_tokens: 47851520
  val_loss: 2.31944212
  val_bpb: 1.05989454
  calibrate_seconds: 4.7
  eval_seconds: 508.8
"""
CHANGES = {
    "size.cap": ("15907550", "16000001"),
    "bytes.rho": ("1.05989454", "0.97282"),
    "tokens.val": ("47851520", "9662464"),
    "clock.train": ("reserve_seconds: 8.0", "reserve_seconds: 4.6"),
    "clock.evaluate": ("508.8", "600.1"),
    "seeds.count": ("[42, 0, 1234]", "[42, 0]"),
    "e3.boundary": ("smear: window", "smear: window, smear_mask: false"),
    "log.complete": ("eval_seconds", "log_ends: GPTQ\n  eval_seconds"),
    "c3.train_then_score": ("eval_seconds", "before_score: three epochs\n  eval_seconds"),
    "leak.selection": ("eval_seconds", "selected_on: the weights\n  eval_seconds"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_audit_finds_what_a_preset_says_and_nothing_else(name: str) -> None:
    found, said = audit_preset(SYSTEMS[name], RULES), expected(SYSTEMS[name])
    verdicts = {
        verdict: {f.check for f in found.findings if f.verdict == verdict} for verdict in ("fail", "cannot tell")
    }
    assert verdicts == {"fail": set(said.fail), "cannot tell": set(said.cannot_tell)}, found.findings
    assert {f.verdict for f in found.findings} >= {"pass"}
    assert said.text


def test_the_systems_that_are_no_records_are_named() -> None:
    failing = {name: expected(path).fail for name, path in SYSTEMS.items() if expected(path).fail}
    assert failing == {
        "pr1520": ("size.cap",), "pr401": ("size.cap",), "pr635": ("leak.selection",),
        "pr1807": ("c3.train_then_score",), "pr2071": ("bytes.rho", "log.complete"), "record-1855": ("clock.train",),
    }  # fmt: skip


def test_the_last_record_keeps_its_clock_with_eight_seconds_in_reserve(tmp_path: Path) -> None:
    text = SYSTEMS["record-1855"].read_text()
    path = tmp_path / "rerun.yaml"
    path.write_text(text.replace("reserve_seconds: 0.5", "reserve_seconds: 8.0"))
    assert path.read_text() != text
    assert not audit_preset(path, RULES).failed


@pytest.mark.parametrize("check", CHANGES)
def test_each_check_finds_its_fact_and_a_clean_system_passes(check: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(CLEAN)
    clean = audit_preset(path, RULES)
    assert {f.verdict for f in clean.findings} == {"pass"}, clean.findings
    assert {f.check for f in clean.findings} == set(CHANGES)
    before, after = CHANGES[check]
    assert before in CLEAN
    path.write_text(CLEAN.replace(before, after, 1))
    fails = {f.check for f in audit_preset(path, RULES).findings if f.verdict == "fail"}
    assert fails >= {check}
    assert fails <= {check, "bytes.rho"}  # another number of targets also implies other bytes


def test_what_nobody_published_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("published: {}\ntrain: {seconds: null, steps: 5}\n")
    open_ = {f.check for f in audit_preset(path, RULES).findings if f.verdict == "cannot tell"}
    assert open_ == {"size.cap", "bytes.rho", "tokens.val", "clock.train", "clock.evaluate", "seeds.count"}


def test_the_command_takes_a_preset_and_refuses_an_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["audit", str(SYSTEMS["pr1520"])]).exit_code == 1
    assert CliRunner().invoke(app, ["audit", str(SYSTEMS["record-1493"])]).exit_code == 0
    done = CliRunner().invoke(app, ["audit", str(ROOT / "presets/mini.yaml")])
    assert done.exit_code == 2
    (tmp_path / "x.yaml").write_text("published: {seed: 1}\n")
    with pytest.raises(InputError, match=r"`published\.seed` is not a parameter; did you mean `seeds`"):
        audit_preset(tmp_path / "x.yaml", RULES)
