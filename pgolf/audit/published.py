"""A preset of a published system, judged by its configuration and by what is known of the run that was published.

A preset carries two keys beside its parameters: `published`, the facts, and `expected_verdict`, what this audit makes
of them. So a preset says what is wrong with the system that it stands for, and a test holds it to that.
"""

from dataclasses import dataclass
from pathlib import Path

from pgolf.audit.log_checks import judge_bytes, judge_targets
from pgolf.audit.verdict import Audit, Finding, judge
from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.model.config import ModelConfig
from pgolf.params import read_params
from pgolf.presets import PUBLISHED, VERDICT
from pgolf.rules import Rules
from pgolf.train.config import TrainConfig

UNSAID = "is not published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Facts of a published run; null where nobody gives them."""

    seeds: tuple[int, ...] = ()
    """Seeds behind the score; none where nobody names them."""
    bytes_total: int | None = None
    """Code and model of the largest seed."""
    val_tokens: int | None = None
    """Targets of the log."""
    val_loss: float | None = None
    """Nats per token of one score, as claimed."""
    val_bpb: float | None = None
    """Bits per byte of the same score."""
    calibrate_seconds: float | None = None
    """Hessians after the loop, on training data; 0 for a quantizer that needs none."""
    eval_seconds: float | None = None
    log_ends: str | None = None
    """The last line of a log that stops before the score."""
    before_score: str | None = None
    """What learned from validation tokens that had no score yet."""
    selected_on: str | None = None
    """What was chosen by its validation score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The checks that do not pass; all others do."""

    text: str
    """In a sentence."""
    fail: tuple[str, ...] = ()
    cannot_tell: tuple[str, ...] = ()


def expected(path: Path) -> Expected:
    """What a preset says of itself; InputError for an overlay, which says nothing."""
    return build(Expected, _entry(path, VERDICT), VERDICT)


def _entry(path: Path, key: str) -> object:
    document = read_params(path)
    if key not in document:
        raise InputError(f"{path} has no `{key}`: only presets of published systems can be audited, not overlays")
    return document[key]


def audit_preset(path: Path, rules: Rules) -> Audit:
    """Judge a preset file; InputError where it is an overlay or has a wrong key."""
    facts = build(Published, _entry(path, PUBLISHED), PUBLISHED)
    document = read_params(path)
    train = build(TrainConfig, document.get("train", {}), "train")
    model = build(ModelConfig, document.get("model", {}), "model")
    evaluate = build(EvaluateConfig, document.get("evaluate", {}), "evaluate")
    findings = (
        _size(facts, rules),
        _log(facts),
        _bytes(facts),
        _targets(facts),
        _train_clock(facts, train, rules),
        _eval_clock(facts, rules),
        _seeds(facts, rules),
        _score_first(facts, evaluate),
        _selection(facts),
        _boundary(model, evaluate),
    )
    about = f"version {rules.version}, {rules.snapshot}"
    return Audit(subject=path.stem, kind="preset", rules=about, findings=findings)


def _size(facts: Published, rules: Rules) -> Finding:
    cap, size = rules.artifact.value, facts.bytes_total
    if size is None:
        return judge("size.cap", None, f"the size {UNSAID}", rules.artifact.source)
    text = f"{size:,} bytes, {abs(cap - size):,} {'over' if size > cap else 'under'} the cap"
    return judge("size.cap", size <= cap, text, rules.artifact.source)


def _log(facts: Published) -> Finding:
    text = f"a log ends at `{facts.log_ends}`" if facts.log_ends else "no log is known to stop early"
    return judge("log.complete", facts.log_ends is None, text, "PR 2071: a log that ended before its claim")


def _bytes(facts: Published) -> Finding:
    source = "spec of the score: BPB = loss / ln 2 * tokens / bytes; PR 2071, issue 1719, PR 1734"
    if facts.val_loss is None or facts.val_bpb is None or facts.val_tokens is None:
        return judge("bytes.rho", None, f"loss, BPB or number of targets {UNSAID}", source)
    return judge("bytes.rho", *judge_bytes(facts.val_loss, facts.val_bpb, facts.val_tokens, digits=8), source)


def _targets(facts: Published) -> Finding:
    source = "the full validation set, once"
    if facts.val_tokens is None:
        return judge("tokens.val", None, f"the number of targets {UNSAID}", source)
    return judge("tokens.val", *judge_targets(facts.val_tokens), source)


def _train_clock(facts: Published, train: TrainConfig, rules: Rules) -> Finding:
    """The time that the configuration leaves to training, and calibration after it."""
    cap, source = rules.train_clock.value, rules.train_clock.source
    if train.seconds is None:
        return judge("clock.train", None, f"{train.steps} steps, no budget in seconds", source)
    left = train.seconds - train.reserve_seconds
    text = f"{left:g} s of steps ({train.seconds:g} s with {train.reserve_seconds:g} s reserved)"
    if facts.calibrate_seconds is None:
        return judge("clock.train", None if left <= cap else False, f"{text}; calibration's time {UNSAID}", source)
    total = left + facts.calibrate_seconds
    text += f" + {facts.calibrate_seconds:g} s of calibration, {abs(cap - total):.1f} s"
    return judge("clock.train", total <= cap, f"{text} {'over' if total > cap else 'under'} the clock", source)


def _eval_clock(facts: Published, rules: Rules) -> Finding:
    seconds, source = facts.eval_seconds, rules.evaluation_clock.source
    if seconds is None:
        return judge("clock.evaluate", None, f"the time {UNSAID}", source)
    return judge("clock.evaluate", seconds <= rules.evaluation_clock.value, f"{seconds:g} s", source)


def _seeds(facts: Published, rules: Rules) -> Finding:
    least, source = rules.record_seeds.value, rules.record_seeds.source
    if not facts.seeds:
        return judge("seeds.count", None, "the seeds are not published", source)
    text = f"seeds {', '.join(map(str, facts.seeds))} of {least}"
    return judge("seeds.count", len(set(facts.seeds)) >= least, text, source)


def _score_first(facts: Published, evaluate: EvaluateConfig) -> Finding:
    source = "issue 402, PR 1376: adaptation before the score"
    if facts.before_score is not None:
        return judge("c3.train_then_score", False, facts.before_score, source)
    adapts = f"`ttt: {evaluate.ttt}` learns from scored tokens only"
    text = "the weights stay as they are" if evaluate.ttt == "none" else adapts
    return judge("c3.train_then_score", True, text, source)


def _selection(facts: Published) -> Finding:
    text = facts.selected_on or "nothing is known to be chosen by its validation score"
    return judge("leak.selection", facts.selected_on is None, text, "PR 401 v2, PR 635: no choice by validation score")


def _boundary(model: ModelConfig, evaluate: EvaluateConfig) -> Finding:
    source = "PR 1797, PR 1874: SmearGate across documents"
    if model.smear == "none":
        return judge("e3.boundary", True, "no smear gate", source)
    if model.smear_mask:
        return judge("e3.boundary", True, "the smear gate stops at document starts", source)
    if evaluate.isolate_documents:
        return judge("e3.boundary", False, "the smear gate has no mask, but documents are isolated", source)
    return judge("e3.boundary", True, "the smear gate has no mask; windows hold several documents anyway", source)
