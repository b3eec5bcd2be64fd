"""What each log must show by itself: that it is whole, what was scored and by which bytes, and both clocks."""

import math
from collections.abc import Callable, Sequence

from pgolf.audit.logs import Result, RunLog
from pgolf.audit.verdict import Finding, Verdict, first_few, judge
from pgolf.data.accounting import EXPORTS, SUBSETS, examine
from pgolf.data.catalogue import LUT_BYTES, TRAIN_SHARDS, VAL_DOCUMENTS
from pgolf.rules import Rules

GAP = 0.006
"""BPB that adaptation gains at most over the weights before quantization (relation 9; 0.004 in PR 1855)."""
DOWNLOADER_SHARDS = (TRAIN_SHARDS,)
LEAKED_SHARDS = {1499: "a local preparation that begins training at document 10,000 (issue 2127, PR 2130)"}

One = Callable[[RunLog], tuple[bool | None, str]]


def check_logs(runs: Sequence[RunLog], rules: Rules) -> list[Finding]:
    """Every check on every log; one finding a check, for the log that is worst."""
    if not runs:
        return [judge("log.complete", False, "no log of a run", "PR 505: missing logs")]
    checks: list[tuple[str, One, str]] = [
        ("log.complete", _complete, "PR 2071: a log that ended before the lines that its claim needs"),
        ("bytes.rho", _rho, "spec of the score: BPB = loss / ln 2 * tokens / bytes; PR 2071, issue 1719, PR 1734"),
        ("tokens.val", _val_tokens, "E.2: the full validation set, once; PR 1854, PR 1785, PR 640"),
        ("tokens.documents", _documents, rules.validation_documents.source),
        ("leak.shards", _shards, "issue 2127: validation documents in training shards, 15 of 34 PRs"),
        ("leak.gap", _order, "relation of the scores: before quantization < quantized, adaptation gains 0.004"),
        ("clock.train", _comparable(_train_clock, rules), rules.train_clock.source),
        ("clock.evaluate", _comparable(_eval_clock, rules), rules.evaluation_clock.source),
        *((name, _sign(kind, verdict), source) for name, kind, verdict, source in SIGN_CHECKS),
    ]
    return [_worst(name, [(log.name, *check(log)) for log in runs], source) for name, check, source in checks]


SIGN_CHECKS: tuple[tuple[str, str, Verdict, str], ...] = (
    ("c1.tilt", "tilt", "cannot tell", "PR 1420, 1437, 1967: hints that read the target; look where the table is read"),
    ("c2.ngram", "ngram", "fail", "PR 779, PR 886: hashed n-gram caches are not normalised"),
    ("c2.ppm", "ppm", "fail", "issue 1872, PR 1905: a byte mixture that does not sum to 1 over tokens"),
    ("c3.slot", "slot", "fail", "PR 1229, 1240, 1336: parameters fitted to the tokens that they then score"),
    ("c3.train_then_score", "train_then_score", "fail", "issue 402, PR 1376: adaptation before the score"),
    ("leak.calibration", "calibration_on_val", "fail", "PR 728: calibration on validation data"),
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
    """Training, sizes and a score, the score in full precision and last."""
    missing = [
        name
        for name, there in (
            ("steps and training time", log.train_ms is not None),
            ("end of calibration", log.calibrates is None or log.hessian_seconds is not None or log.total_bytes),
            ("total size", log.total_bytes is not None),
            ("score of the quantized model", log.final is not None),
        )
        if not there
    ]
    if missing:
        return False, f"ends at line {log.lines} without {', '.join(missing)}"
    assert log.final is not None
    if log.final.digits < 6:
        return None, f"`{log.final.name}` has {log.final.digits} decimals only"
    return True, f"`{log.final.name}` {log.final.bpb} on line {log.final.line}"


def _rho(log: RunLog) -> tuple[bool | None, str]:
    """Relation 1: the bytes that three logged numbers imply."""
    if log.final is None or log.val_tokens is None:
        return None, "no score or no val_tokens: recount the bytes"
    if not (log.final.loss > 0 and log.final.bpb > 0 and log.val_tokens > 0):
        return False, f"loss {log.final.loss}, BPB {log.final.bpb}, {log.val_tokens} tokens are no score"
    found = examine(log.final.loss, log.final.bpb, log.val_tokens)
    text = f"{found.bytes:,} bytes, rho {found.tokens_per_byte:.5f}: {found.text}"
    if found.corrected_bpb is not None and found.right is False:
        text += f"; over the canonical bytes it is {found.corrected_bpb:.5f} BPB"
    if found.right and (off := _off(found.bytes, log.val_tokens, log.final)):
        return None, f"{text}, but {off:,} bytes off the exact count"
    return found.right, text


def _off(count: int, targets: int, score: Result) -> int:
    """By how many bytes a count leaves the exact one, beyond the rounding of its log; 0 where it does not."""
    export = next(e for e in EXPORTS.values() if targets in (e.val_targets, (e.val_tokens or 0) - 1))
    if export.transform == "none":
        tail = 10 * ((export.val_tokens - 1 - targets) if export.val_tokens else 2048)
        low, high = LUT_BYTES - tail, LUT_BYTES
    else:
        low = high = round(export.val_targets / export.tokens_per_byte)
    rounding = math.ceil(count * 0.5 * 10.0**-score.digits * (1 / score.bpb + 1 / score.loss)) + 2
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
    if log.val_tokens in SUBSETS:
        return False, f"{log.val_tokens:,} targets: {SUBSETS[log.val_tokens]}"
    name = next((n for n, e in EXPORTS.items() if log.val_tokens in (e.val_targets, (e.val_tokens or 0) - 1)), None)
    if name is None:
        return None, f"{log.val_tokens:,} targets are those of no published set: recount with its tokenizer"
    return True, f"{log.val_tokens:,} targets, all of {name}"


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


def _order(log: RunLog) -> tuple[bool | None, str]:
    """Relation 9; sliding windows gain more than this by themselves, so they are not compared."""
    before = log.diagnostic("pre-quant") or log.diagnostic("post_ema")
    quantized = next((r for r in log.results if r.name in ("quantized", "diagnostic quantized")), None)
    if before is None or log.final is None:
        return None, "no score before quantization"
    if quantized is not None and quantized.bpb < before.bpb:
        return None, f"quantized {quantized.bpb} is better than {before.bpb} before: see what was trained in between"
    gain = before.bpb - log.final.bpb
    if "sliding" in log.final.name or "window" in log.final.name or quantized is None:
        return True, f"{log.final.name} {gain:+.4f} BPB against the weights before quantization, other windows"
    if gain > GAP:
        return None, f"{log.final.name} is {gain:.4f} BPB better than before quantization: a sign of leaked validation"
    return True, f"adaptation ends {gain:+.4f} BPB against the weights before quantization"


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
