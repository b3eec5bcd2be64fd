"""The gate on hand-made metrics: each limit can fail alone, and nothing unknown passes."""

import json
from typing import Any

import pytest

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.rules import load_rules
from pgolf.submit.config import VerifyConfig
from pgolf.submit.gate import GateReport, gate

RULES = load_rules()
H100 = RULES.reference_hardware.value


def metrics(**changes: Any) -> dict[str, dict[str, Any]]:
    """Metrics of a run that passes on the reference hardware; `train__hardware="cpu"` changes one."""
    values: dict[str, dict[str, Any]] = {
        "tokenize": {"val_tokens": 1001},
        "train": {"train_seconds": 590.0, "hardware": H100},
        "calibrate": {"calibrate_seconds": 4.0},
        "evaluate": {"eval_seconds": 500.0, "scored_tokens": 1000},
    }
    for key, value in changes.items():
        stage, _, name = key.partition("__")
        values[stage][name] = value
    return values


def judge(
    bytes_model: int = 15_900_000, bytes_code: int = 32_000, cap: int | None = None, **changes: Any
) -> GateReport:
    return gate(metrics(**changes), bytes_model, bytes_code, RULES, cap)


def test_weights_that_saw_the_validation_tokens_fail() -> None:
    report = judge(train__trained_on_validation=True)
    assert report.failed
    assert {row.name for row in report.rows if row.verdict == "fail"} == {"trained_on_validation"}
    assert report.metrics()["trained_on_validation_verdict"] == "fail"


def test_a_good_run_passes_everywhere() -> None:
    report = judge()
    assert {row.name: row.verdict for row in report.rows} == {
        "size": "pass",
        "training_clock": "pass",
        "evaluation_clock": "pass",
        "scored_once": "pass",
    }
    assert not report.failed
    assert report.row("training_clock").margin == pytest.approx(6.0)
    assert report.metrics()["margin_bytes"] == 68_000
    assert report.metrics()["bytes_total"] == 15_932_000


def test_size_is_code_plus_model_to_the_byte() -> None:
    assert not judge(bytes_model=15_968_000).failed
    over = judge(bytes_model=15_968_001)
    assert over.failed
    assert over.row("size").margin == -1
    assert [row.name for row in over.rows if row.verdict == "fail"] == ["size"]


def test_the_cap_can_be_lowered() -> None:
    assert judge(cap=15_932_000).row("size").verdict == "pass"
    assert judge(cap=15_931_999).row("size").verdict == "fail"
    assert build(VerifyConfig, {}, "verify_size").cap_bytes == RULES.artifact.value
    with pytest.raises(InputError, match="cap_bytes"):
        build(VerifyConfig, {"cap_bytes": 0}, "verify_size")


def test_calibration_counts_as_training() -> None:
    assert judge(calibrate__calibrate_seconds=10.0).row("training_clock").verdict == "pass"
    late = judge(calibrate__calibrate_seconds=10.5)
    assert late.row("training_clock").verdict == "fail"
    assert late.row("training_clock").actual == 600.5
    assert late.row("evaluation_clock").verdict == "pass"
    assert late.failed


def test_the_evaluation_clock_fails_alone() -> None:
    late = judge(evaluate__eval_seconds=600.5)
    assert [row.name for row in late.rows if row.verdict == "fail"] == ["evaluation_clock"]


def test_clocks_are_not_compared_off_the_reference_hardware() -> None:
    report = judge(train__hardware="cpu", evaluate__eval_seconds=9000.0)
    assert report.row("training_clock").verdict == "not comparable"
    assert report.row("evaluation_clock").verdict == "not comparable"
    assert not report.failed


def test_a_stage_on_another_machine_is_not_judged_by_the_training_machine() -> None:
    report = judge(calibrate__hardware="cpu", evaluate__hardware="1x NVIDIA H100 80GB HBM3")
    assert report.row("training_clock").verdict == "not comparable"
    assert report.row("evaluation_clock").verdict == "not comparable"
    assert judge(calibrate__hardware=H100, evaluate__hardware=H100) == judge()


@pytest.mark.parametrize("seconds", [0.0, 590.0, None, 9000.0])
def test_an_adopted_checkpoint_never_passes_the_training_clock(seconds: float | None) -> None:
    report = judge(train__adopted=True, train__train_seconds=seconds)
    assert report.row("training_clock").verdict == "unknown"
    assert report.row("evaluation_clock").verdict == "pass"
    values = metrics(train__adopted=True)
    del values["train"]["train_seconds"]
    assert gate(values, 1, 1, RULES, None).row("training_clock").verdict == "unknown"


@pytest.mark.parametrize("scored", [999, 1001, 2000, 0])
def test_every_target_is_scored_exactly_once(scored: int) -> None:
    report = judge(evaluate__scored_tokens=scored)
    assert report.row("scored_once").verdict == "fail"
    assert report.failed


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("tokenize", "val_tokens"),
        ("train", "train_seconds"),
        ("train", "hardware"),
        ("calibrate", "calibrate_seconds"),
        ("evaluate", "eval_seconds"),
        ("evaluate", "scored_tokens"),
    ],
)
def test_a_missing_metric_is_named(stage: str, key: str) -> None:
    values = metrics()
    del values[stage][key]
    with pytest.raises(InputError, match=f"`{stage}` have no `{key}`"):
        gate(values, 1, 1, RULES, None)
    del values[stage]
    with pytest.raises(InputError, match=f"no metrics of `{stage}`"):
        gate(values, 1, 1, RULES, None)


def test_the_report_is_strict_json() -> None:
    report = judge(train__adopted=True, train__train_seconds=None, bytes_model=17_000_000)
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["failed"] is True
    assert value["size_verdict"] == "fail"
    assert value["rows"][1] == {
        "name": "training_clock",
        "limit": 600.0,
        "actual": None,
        "margin": None,
        "verdict": "unknown",
    }


def test_an_interrupted_run_never_passes_the_training_clock() -> None:
    """The seconds between its last state and the interruption are on no clock."""
    assert judge(train__record_eligible=False).row("training_clock").verdict == "unknown"
    assert judge(train__record_eligible=True).row("training_clock").verdict == "pass"
