"""What each log must show by itself: that it is whole, what was scored and by which bytes, and both clocks."""

import math
import re
from collections.abc import Callable, Sequence

from pgolf.audit.logs import RunLog
from pgolf.audit.verdict import Finding, Verdict, first_few, judge
from pgolf.data.accounting import EXPORTS, SUBSETS, examine
from pgolf.data.catalogue import EVAL_LENGTH, LUT_BYTES, TRAIN_SHARDS, VAL_DOCUMENTS
from pgolf.rules import Rules

GAP = 0.006
"""BPB that adaptation gains at most over the weights before quantization (relation 9; 0.004 in PR 1855)."""
LEAKED_SHARDS = {1499: "a local preparation that begins training at document 10,000 (issue 2127, PR 2130)"}

One = Callable[[RunLog], tuple[bool | None, str]]


def check_logs(runs: Sequence[RunLog], rules: Rules, record: bool = True) -> list[Finding]:
    """Every check on every log; one finding a check, for the log that is worst.

    `record`: the folder asks for a place among the records; others have no clock, and may score another text.
    """
    if not runs:
        return [judge("log.complete", False, "no log of a run", "PR 505: missing logs")]
    checks: list[tuple[str, One, str]] = [
        ("log.complete", _complete, "PR 2071: a log that ended before the lines that its claim needs"),
        ("bytes.rho", _rho, "spec of the score: BPB = loss / ln 2 * tokens / bytes; PR 2071, issue 1719, PR 1734"),
        ("tokens.val", _val_tokens, "the full validation set, once; PR 1854, PR 1785, PR 640"),
        ("tokens.documents", _asked(_documents, record), rules.validation_documents.source),
        ("leak.shards", _shards, "issue 2127: validation documents in training shards, 15 of 34 PRs"),
        ("leak.train_files", _train_files, "PR 44: training on validation shards"),
        ("leak.gap", _order, "relation of the scores: before quantization < quantized, adaptation gains 0.004"),
        ("clock.train", _asked(_comparable(_train_clock, rules), record), rules.train_clock.source),
        ("clock.after", _asked(_after_clock, record), "PR 401 burst, PR 634 v1: work after the 600 s clock"),
        ("clock.evaluate", _asked(_comparable(_eval_clock, rules), record), rules.evaluation_clock.source),
        *((name, _sign(kind, verdict), source) for name, kind, verdict, source in SIGN_CHECKS),
    ]
    return [_worst(name, [(log.name, *check(log)) for log in runs], source) for name, check, source in checks]


SIGN_CHECKS: tuple[tuple[str, str, Verdict, str], ...] = (
    ("c1.tilt", "tilt", "cannot tell", "PR 1420, 1437, 1967: hints that read the target; look where the table is read"),
    ("c2.ngram", "ngram", "fail", "PR 779, PR 886: hashed n-gram caches are not normalised"),
    ("c2.ppm", "ppm", "fail", "issue 1872, PR 1905: a byte mixture that does not sum to 1 over tokens"),
    ("c3.slot", "slot", "fail", "PR 1229, 1240, 1336: parameters fitted to the tokens that they then score"),
    ("c3.train_then_score", "train_then_score", "fail", "issue 402, PR 1376: adaptation before the score"),
    ("c4.passes", "second_pass", "cannot tell", "PR 991: a second pass over scored targets; look what it replaces"),
    ("leak.calibration", "calibration_on_val", "fail", "PR 728: calibration on validation data"),
    ("leak.selection", "picked", "cannot tell", "PR 401 v2, PR 635: chosen by validation score; look which data it is"),
    ("offline", "download", "fail", "PR 466: no network at run time"),
)


def _worst(check: str, found: list[tuple[str, bool | None, str]], source: str) -> Finding:
    """The findings of all logs as one: a fail before an open question."""
    for right in (False, None):
        if hits := [f"{name}: {text}" for name, verdict, text in found if verdict is right]:
            return judge(check, right, first_few(hits, 3), source)
    return judge(check, True, f"{found[0][2]}{f' ({len(found)} logs)' if len(found) > 1 else ''}", source)


def _sign(kind: str, verdict: Verdict) -> One:
    def check(log: RunLog) -> tuple[bool | None, str]:
        if lines := log.signs.get(kind):
            return (False if verdict == "fail" else None), f"line {first_few(map(str, lines))}"
        return True, "no such line"

    return check


def _complete(log: RunLog) -> tuple[bool | None, str]:
    """What a whole log has: training, sizes and a score, the score in full precision and last."""
    dumped = log.dumped  # from PR 1394 on; the starter program and its first descendants print fewer lines
    adapted = log.final is not None and "ttt" in log.final.name
    lines = (
        ("steps and training time", log.train_ms is not None, True),
        ("end of calibration", log.calibrates is None or log.hessian_seconds is not None or log.total_bytes, True),
        ("total size", log.total_bytes is not None, True),
        ("score of the quantized model", log.final is not None, True),
        ("model size", log.model_bytes is not None, False),
        ("code size", log.code_bytes is not None, False),
        ("val_tokens", log.val_tokens is not None, False),
        ("train_shards", log.train_shards is not None, False),
        ("score before quantization", not dumped or log.before is not None, False),
        ("score before adaptation", not (dumped and adapted) or log.quantized is not None, False),
    )
    missing = [name for name, there, needed in lines if needed and not there]
    if missing:
        return False, f"ends at line {log.lines} without {', '.join(missing)}"
    assert log.final is not None
    if log.final.digits < 6:
        return None, f"`{log.final.name}` has {log.final.digits} decimals only"
    if missing := [name for name, there, needed in lines if not there]:
        return None, f"no line gives {', '.join(missing)}: ask for the whole log"
    return True, f"`{log.final.name}` {log.final.bpb} on line {log.final.line}"


def _rho(log: RunLog) -> tuple[bool | None, str]:
    """Relation 1: the bytes that three logged numbers imply."""
    if log.final is None or log.val_tokens is None:
        return None, "no score or no val_tokens: recount the bytes"
    return judge_bytes(log.final.loss, log.final.bpb, log.val_tokens, log.final.digits)


def judge_bytes(loss: float, bpb: float, targets: int, digits: int) -> tuple[bool | None, str]:
    """Whether a score, in nats per token and BPB of so many decimals, was divided by the bytes of its targets."""
    if not (loss > 0 and bpb > 0 and targets > 0):
        return False, f"loss {loss}, BPB {bpb}, {targets} tokens are no score"
    found = examine(loss, bpb, targets)
    text = f"{found.bytes:,} bytes, rho {found.tokens_per_byte:.5f}: {found.text}"
    if found.corrected_bpb is not None and found.right is False:
        text += f"; over the canonical bytes it is {found.corrected_bpb:.5f} BPB"
    rounding = math.ceil(found.bytes * 0.5 * 10.0**-digits * (1 / bpb + 1 / loss)) + 2
    if found.right and (off := _off(found.bytes, targets, rounding)):
        return None, f"{text}, but {off:,} bytes off the exact count"
    return found.right, text


def _off(count: int, targets: int, rounding: int) -> int:
    """By how many bytes a count leaves the exact one, beyond the rounding of its log; 0 where it does not."""
    export = next(e for e in EXPORTS.values() if targets in (e.val_targets, (e.val_tokens or 0) - 1))
    if export.transform == "none":
        tail = 10 * ((export.val_tokens - 1 - targets) if export.val_tokens else 2048)
        low, high = LUT_BYTES - tail, LUT_BYTES
    else:
        low = high = round(export.val_targets / export.tokens_per_byte)
    return max(low - rounding - count, count - high - rounding, 0)


def _val_tokens(log: RunLog) -> tuple[bool | None, str]:
    """How many targets were scored."""
    fraction = log.hyperparameters.get("val_doc_fraction", "1.0")
    if fraction not in ("1", "1.0"):
        return False, f"val_doc_fraction is {fraction[:20]}"
    for key in ("val_max_tokens", "ppm_subset_tokens", "val_max_docs"):
        if log.hyperparameters.get(key, "0") not in ("0", "None", "", "-1"):
            return False, f"{key} is {log.hyperparameters[key][:20]}"
    if log.val_tokens is None:
        return None, "no line says how many targets were scored"
    if log.target_tokens is not None and log.target_tokens < log.val_tokens:
        return False, f"adaptation scored {log.target_tokens:,} of {log.val_tokens:,} targets"
    return judge_targets(log.val_tokens)


def judge_targets(count: int) -> tuple[bool | None, str]:
    """Whether so many targets are a whole published validation set."""
    if count in SUBSETS:
        return False, f"{count:,} targets: {SUBSETS[count]}"
    for name, export in EXPORTS.items():
        if count in (export.val_targets, (export.val_tokens or 0) - 1):
            return True, f"{count:,} targets, all of {name}"
        if abs(count - 2 * (export.val_tokens or export.val_targets)) <= EVAL_LENGTH:
            return False, f"{count:,} targets are twice those of {name}: byte counts were read as tokens"
    return None, f"{count:,} targets are those of no published set: recount with its tokenizer"


def _documents(log: RunLog) -> tuple[bool | None, str]:
    if log.documents is None:
        return None, "no line says how many documents were scored"
    return log.documents == VAL_DOCUMENTS, f"{log.documents:,} of {VAL_DOCUMENTS:,} documents"


def _shards(log: RunLog) -> tuple[bool | None, str]:
    """The fingerprint of a local preparation: its shards begin inside the published validation set."""
    if log.train_shards in LEAKED_SHARDS:
        return False, f"{log.train_shards} training shards: {LEAKED_SHARDS[log.train_shards]}"
    if log.signs.get("doubled_path"):
        lines = first_few(map(str, log.signs["doubled_path"]))
        return None, f"doubled `datasets/datasets` path (line {lines}): see how the shards were made"
    if log.train_shards is None:
        return None, "no train_shards line: compare the first training document with the validation set"
    if log.train_shards > TRAIN_SHARDS:
        return None, f"{log.train_shards} shards, the downloader gives {TRAIN_SHARDS}: see how they were made"
    return True, f"{log.train_shards} training shards"


def _train_files(log: RunLog) -> tuple[bool | None, str]:
    named = {key: value for key, value in log.hyperparameters.items() if "train" in key and "file" in key}
    wrong = [f"{key}: {value[:60]}" for key, value in named.items() if re.search(r"fineweb_(?:val|\*)", value)]
    return not wrong, first_few(wrong) or "training files are no validation files"


def _order(log: RunLog) -> tuple[bool | None, str]:
    """Relation 9: what quantization costs, and what adaptation gains over the same windows without it."""
    before, quantized, final = log.before, log.quantized, log.final
    if final is None:
        return None, "no score"
    if before is not None and quantized is not None and quantized.bpb < before.bpb:
        return None, f"quantized {quantized.bpb} is better than {before.bpb} before: see what was trained in between"
    if "sliding" in final.name or "roundtrip" in final.name:
        return True, f"`{final.name}` is a score without adaptation"
    sliding = next((r for r in reversed(log.scores) if "sliding" in r.name and r.digits >= final.digits), None)
    reference, name = (sliding, "sliding windows") if sliding else (before, "the weights before quantization")
    if reference is None:
        return None, "no score to compare adaptation with"
    gain = reference.bpb - final.bpb
    if gain > GAP:
        return None, f"`{final.name}` is {gain:.4f} BPB better than {name}: a sign of leaked validation"
    return True, f"adaptation ends {gain:+.4f} BPB better than {name}"


def _asked(check: One, record: bool) -> One:
    """A limit that only records have to keep."""
    if record:
        return check

    def excused(log: RunLog) -> tuple[bool | None, str]:
        right, text = check(log)
        return (right, text) if right is not False else (None, f"{text}; not a record, so not a violation")

    return excused


def _after_clock(log: RunLog) -> tuple[bool | None, str]:
    """Steps, or lines that speak of steps, below the line that says that the clock has stopped."""
    if log.late_step:
        return False, f"line {log.late_step} trains on after the clock stopped"
    if lines := log.signs.get("late_work"):
        return None, f"line {first_few(map(str, lines))} speaks of work after the clock stopped: is its time charged?"
    return True, "no step after the clock stopped"


def _comparable(clock: Callable[[RunLog, Rules], tuple[bool | None, str]], rules: Rules) -> One:
    """A clock on other hardware than the rules' is no evidence either way."""

    def check(log: RunLog) -> tuple[bool | None, str]:
        right, text = clock(log, rules)
        if log.hardware not in (None, rules.reference_hardware.value):
            return None, f"{text}, on {log.hardware}: not comparable"
        return right, text

    return check


def _train_clock(log: RunLog, rules: Rules) -> tuple[bool | None, str]:
    """Relation 4: steps, and calibration on training data after them."""
    cap = rules.train_clock.value
    if log.train_ms is None:
        return None, "no training time"
    trained, calibrated = log.train_ms / 1000, log.hessian_seconds
    step = trained / log.steps if log.steps else 0.0  # on average; with recurrence on the last ones take longer
    text = f"{trained:.3f} s of steps"
    if calibrated is not None:
        text += f" + {calibrated:g} s of calibration"
    if trained + (calibrated or 0) > cap:
        if calibrated is None and trained <= cap + 2 * step:
            return None, f"{text}: over by less than the last steps, which the starter program allows itself"
        return False, f"{text}: {trained + (calibrated or 0) - cap:.3f} s over"
    if log.effective_ms is not None and log.train_ms > log.effective_ms + 2000 * step:
        return False, f"{text}: more than two steps beyond the {log.effective_ms:,.0f} ms left by its own reserve"
    if calibrated is None and log.calibrates is not None:
        return None, f"{text}; calibration on line {log.calibrates} gives no seconds"
    return True, text


def _eval_clock(log: RunLog, rules: Rules) -> tuple[bool | None, str]:
    cap = rules.evaluation_clock.value
    timed = [result.seconds for result in log.scores if result.seconds is not None]
    if log.eval_seconds is not None:
        seconds = max([log.eval_seconds, *timed])
        return seconds <= cap, f"{seconds:g} s"
    if not timed:
        return None, "no evaluation time"
    if max(timed) > cap:
        return False, f"{max(timed):g} s for one score"
    if sum(timed) > cap:
        return None, f"{sum(timed):g} s for {len(timed)} scores, each below {cap:g}: which ones does the claim need?"
    return True, f"{sum(timed):g} s for {len(timed)} scores"
