"""The last check of the pipeline: size, clocks and scored-exactly-once, as one table of limit, actual and margin.

Records were lost to artifacts a few kilobytes over the cap (PR 1835, PR 1978), to calibration after the clock
(PR 593) and to positions scored twice (PR 991). A gate never raises for a failed limit, it reports it: the stage
writes the report first and then exits with 1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pgolf.budget import Ledger, Verdict, clock_verdict
from pgolf.errors import InputError
from pgolf.rules import Rules

_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class GateRow:
    """One limit and how it was met."""

    name: str
    limit: float
    actual: float | None
    """None where nobody measured it."""
    margin: float | None
    """limit - actual: room left, negative where the limit is exceeded."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GateReport:
    """Every limit of a submission."""

    rows: tuple[GateRow, ...]
    bytes_code: int
    bytes_model: int
    rules_version: int

    @property
    def failed(self) -> bool:
        """Whether any limit is certainly exceeded; "unknown" and "not comparable" do not fail."""
        return any(row.verdict == "fail" for row in self.rows)

    def row(self, name: str) -> GateRow:
        """The row called `name`: `size`, `training_clock`, `evaluation_clock` or `scored_once`."""
        return next(row for row in self.rows if row.name == name)

    def metrics(self) -> dict[str, int | str]:
        """The stage's flat metrics."""
        size = self.row("size")
        assert size.margin is not None
        return {
            "bytes_code": self.bytes_code,
            "bytes_model": self.bytes_model,
            "bytes_total": self.bytes_code + self.bytes_model,
            "margin_bytes": int(size.margin),
            **{f"{row.name}_verdict": row.verdict for row in self.rows},
        }

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON values."""
        return {**self.metrics(), "failed": self.failed, "rules_version": self.rules_version, "rows": self._rows()}

    def _rows(self) -> list[dict[str, Any]]:
        return [asdict(row) for row in self.rows]


def gate(
    metrics: Mapping[str, Mapping[str, Any]], bytes_model: int, bytes_code: int, rules: Rules, cap: int | None
) -> GateReport:
    """Judge a run by the metrics of its stages and the bytes of what ships; `cap` in bytes, None for the rules' own.

    Reads `tokenize.val_tokens`, `train.train_seconds`, `train.hardware` (for example "8x NVIDIA H100 80GB HBM3" or
    "cpu"), `train.adopted` (may be absent), `calibrate.calibrate_seconds`, `evaluate.eval_seconds` and
    `evaluate.scored_tokens`; `calibrate.hardware` and `evaluate.hardware` where those stages ran on another machine.
    Raises InputError for a missing metric.
    """
    train, calibrate, evaluate = (_stage(metrics, stage) for stage in ("train", "calibrate", "evaluate"))
    # Seconds between the last state and an interruption are on no clock, as are those of an adopted checkpoint.
    adopted = bool(_get(train, "train", "adopted", default=False))
    adopted |= not _get(train, "train", "record_eligible", default=True)
    hardware = _get(train, "train", "hardware")
    ledger = Ledger(
        train_seconds=_get(train, "train", "train_seconds", default=None if adopted else _REQUIRED),
        calibrate_seconds=_get(calibrate, "calibrate", "calibrate_seconds"),
        eval_seconds=_get(evaluate, "evaluate", "eval_seconds"),
    )
    reference = rules.reference_hardware.value
    # Seconds of two machines add up to a time on neither.
    places = {hardware, _get(calibrate, "calibrate", "hardware", default=hardware)}
    trained_on = hardware if len(places) == 1 else f"train {hardware}, calibrate elsewhere"
    trained = clock_verdict(ledger.training, rules.train_clock.value, trained_on, reference, adopted)
    scored_on = _get(evaluate, "evaluate", "hardware", default=hardware)
    scored = clock_verdict(ledger.evaluation, rules.evaluation_clock.value, scored_on, reference, False)
    # A stream of n tokens has n - 1 targets: its first token is never predicted.
    targets = _get(_stage(metrics, "tokenize"), "tokenize", "val_tokens") - 1
    scored_tokens = _get(evaluate, "evaluate", "scored_tokens")
    limit, total = rules.artifact.value if cap is None else cap, bytes_code + bytes_model
    rows: tuple[GateRow, ...] = (
        _row("size", limit, total, "pass" if total <= limit else "fail"),
        _row("training_clock", rules.train_clock.value, ledger.training, trained),
        _row("evaluation_clock", rules.evaluation_clock.value, ledger.evaluation, scored),
        _row("scored_once", targets, scored_tokens, "pass" if scored_tokens == targets else "fail"),
    )
    if _get(train, "train", "trained_on_validation", default=False):  # `pgolf prequant`: not valid for records
        rows += (_row("trained_on_validation", 0, targets, "fail"),)
    return GateReport(rows, bytes_code, bytes_model, rules.version)


def _stage(metrics: Mapping[str, Mapping[str, Any]], stage: str) -> Mapping[str, Any]:
    if stage not in metrics:
        raise InputError(f"there are no metrics of `{stage}`: run `pgolf {stage}` first (or `dvc repro`)")
    return metrics[stage]


def _get(values: Mapping[str, Any], stage: str, key: str, default: Any = _REQUIRED) -> Any:
    if key not in values and default is _REQUIRED:
        raise InputError(f"the metrics of `{stage}` have no `{key}`: run `pgolf {stage}` again")
    return values.get(key, default)


def _row(name: str, limit: float, actual: float | None, verdict: Verdict) -> GateRow:
    return GateRow(name, limit, actual, None if actual is None else limit - actual, verdict)
