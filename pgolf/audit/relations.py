"""Relations between the logs of a submission and its submission.json (what a reviewer does with a calculator)."""

import datetime
import math
import re
import statistics
from collections.abc import Sequence
from typing import Any

from pgolf.audit.folder import Folder
from pgolf.audit.logs import Result, RunLog
from pgolf.audit.verdict import Finding, first_few, judge
from pgolf.rules import Rules
from pgolf.submit.significance import shifted_welch, student_tail

MINIMUM, USUAL = ("author", "github_id", "name", "date", "val_bpb"), ("blurb", "val_loss")
"""Fields of the earliest records; merged rows lack some of the usual ones (PR 1493)."""
NUMBERS = ("val_loss", "val_bpb", "bytes_total")
PER_SEED = {
    "val_loss": 1e-8, "val_bpb": 1e-8, "artifact_bytes": 0.5, "bytes_total": 0.5, "steps": 0.5, "eval_time_s": 0.05,
    "train_time_s": 0.05, "step_avg_ms": 0.1, "pre_quant": 1e-8, "quantized": 1e-8,
}  # fmt: skip
"""What a seed's log says again -> how far off a claim may be, beyond its own rounding."""
RECORDS_ONLY = frozenset({"train_under_600s", "eval_under_600s", "three_seeds"})
"""Compliance flags that other tracks need not keep."""
OWN = frozenset({"seed", "train_seed", "run_id", "logfile", "local_rank", "rank", "artifact_dir"})
"""Hyperparameters that may differ between the seeds of one submission, and paths, which depend on the machine."""


def check_submission(folder: Folder, rules: Rules, base: Sequence[float] = ()) -> list[Finding]:
    """submission.json: its fields, and every number that a log can confirm."""
    claims = folder.submission
    if claims is None:
        return [judge("submission.fields", False, f"submission.json: {folder.problem}", "PR 505, PR 1836")]
    results = claims.get("seed_results")
    seeds = {s: r for s, r in results.items() if isinstance(r, dict)} if isinstance(results, dict) else {}
    found = [_fields(claims), _author(claims), _date(claims, folder, rules), _logs(claims, seeds, folder.runs)]
    found += [_means(claims, seeds), _derived(claims, seeds, folder.runs), _compliance(claims, folder, seeds, rules)]
    found += [_disclosed(claims, seeds, folder.runs), _count(seeds, folder, rules)]
    significance = _significance(claims, seeds, folder.runs, rules, base)
    if significance.verdict == "fail" and not folder.record:
        text = f"{significance.evidence}; not a record, so none is asked"
        significance = judge(significance.check, None, text, significance.source)
    return [*found, significance]


def agrees(claimed: Any, actual: float, least: float = 0.0) -> bool:
    """Whether a claim is a value as rounded to the digits that the claim has."""
    if isinstance(claimed, bool) or not isinstance(claimed, int | float) or not math.isfinite(claimed):
        return False
    digits = len(f"{claimed:.10f}".rstrip("0").partition(".")[2])
    return abs(claimed - actual) <= max(least, 0.501 * 10.0**-digits if digits else least, 1e-9)


def _fields(claims: dict[str, Any]) -> Finding:
    missing = [key for key in MINIMUM if key not in claims]
    nulls = [key for key, value in claims.items() if value is None or value == ""]
    wrong = [key for key, value in claims.items() if key in NUMBERS and not _number(value)]
    parts: dict[str, list[str]] = {"missing": missing, "null": nulls, "no number": wrong}
    text = "; ".join(f"{name}: {first_few(keys)}" for name, keys in parts.items() if keys)
    lacking = [key for key in USUAL if key not in claims]
    source = "PR 1836: null fields; fields of early records"
    if lacking and not text:
        return judge("submission.fields", None, f"no {first_few(lacking)}: see the README", source)
    return judge("submission.fields", not text, text or "complete", source)


def _author(claims: dict[str, Any]) -> Finding:
    """Submissions are individuals'."""
    who = [claims.get(key) for key in ("author", "github_id")]
    several = [str(name)[:60] for name in who if isinstance(name, list) and len(name) > 1]
    several += [n[:60] for n in who if isinstance(n, str) and re.search(r"(?i)[,&;+/]|\band\b|\bteam\b", n)]
    text = f"{several[0]}: one person or several?" if several else "one person"
    return judge("submission.author", None if several else True, text, "individuals only (raised on PR 2071)")


def _date(claims: dict[str, Any], folder: Folder, rules: Rules) -> Finding:
    """An ISO date, not after the deadline."""
    source = rules.deadline.source
    try:
        day = datetime.date.fromisoformat(str(claims.get("date"))[:10])
    except ValueError:
        return judge("submission.date", False, f"{claims.get('date')!s:.20} is no ISO date", source)
    late = day > datetime.date.fromisoformat(rules.deadline.value[:10])
    text = f"{day}, after the deadline of {rules.deadline.value}" if late else str(day)
    if late and folder.record:
        return judge("submission.date", None, f"{text}: a grace batch?", source)
    return judge("submission.date", True, text, source)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _of_seed(runs: Sequence[RunLog], seed: str) -> RunLog | None:
    return next((log for log in runs if str(log.seed) == seed), None)


def _logs(claims: dict[str, Any], seeds: dict[str, dict[str, Any]], runs: Sequence[RunLog]) -> Finding:
    """Relation 5: what is claimed for a seed is what its log says."""
    source = "PR 2071: claims that no log backed"
    wrong: list[str] = []
    open_: list[str] = []
    checked = 0
    pairs = [(seed, claim, _of_seed(runs, seed)) for seed, claim in seeds.items()]
    if not pairs and len(runs) == 1:
        pairs = [(str(runs[0].seed), claims, runs[0])]
    for seed, claim, log in pairs:
        if log is None or log.final is None:
            wrong.append(f"seed {seed[:20]} has no log with a score")
            continue
        for key, value in _logged(log, log.final).items():
            if key not in claim or value is None:
                continue
            checked += 1
            if agrees(claim[key], value, PER_SEED[key]):
                continue
            other = _elsewhere(key, claim[key], log.results)
            text = f"seed {seed[:20]} {key}: {claim[key]!s:.20} claimed, {value} in {log.name}"
            (open_ if other else wrong).append(f"{text}{f', it is that of `{other}`' if other else ''}")
    if wrong:
        return judge("submission.logs", False, first_few(wrong), source)
    if open_:
        return judge("submission.logs", None, f"not the last score of the log: {first_few(open_)}", source)
    return judge("submission.logs", True if checked else None, f"numbers that agree with the logs: {checked}", source)


def _logged(log: RunLog, final: Result) -> dict[str, float | None]:
    """What a log says of the fields in PER_SEED."""
    seconds = None if log.train_ms is None else log.train_ms / 1000
    return {
        "val_loss": final.loss, "val_bpb": final.bpb, "artifact_bytes": log.total_bytes, "steps": log.steps,
        "bytes_total": log.total_bytes, "eval_time_s": log.eval_seconds, "train_time_s": seconds,
        "step_avg_ms": 1000 * seconds / log.steps if seconds is not None and log.steps else None,
        "pre_quant": log.before.bpb if log.before else None, "quantized": log.quantized.bpb if log.quantized else None,
    }  # fmt: skip


def _elsewhere(key: str, claimed: Any, results: Sequence[Result]) -> str | None:
    """Another line of the log that has the number that was claimed."""
    values = {"val_loss": "loss", "val_bpb": "bpb"}
    if key not in values:
        return None
    return next((r.name for r in results if not r.diagnostic and agrees(claimed, getattr(r, values[key]))), None)


def _means(claims: dict[str, Any], seeds: dict[str, dict[str, Any]]) -> Finding:
    """Relation 6: means and deviations recompute from the seeds."""
    source = "submission.json: means over seeds; both divisors of the deviation are in use"
    wrong: list[str] = []
    said: list[str] = []
    for key in ("val_loss", "val_bpb"):
        values = [r[key] for r in seeds.values() if _number(r.get(key))]
        if not values or key not in claims:
            continue
        if not agrees(claims[key], mean := statistics.fmean(values), 1e-6):
            wrong.append(f"{key} is {claims[key]!s:.20}, the mean of {len(values)} seeds {mean:.8f}")
        else:
            said.append(f"{key} is the mean")
        if _number(claimed := claims.get(f"{key}_std")) and len(values) > 1:
            kinds = {"sample": statistics.stdev(values), "population": statistics.pstdev(values)}
            names = [name for name, value in kinds.items() if agrees(claimed, value, 1e-6)]
            said += [f"{key}_std is the {names[0]} deviation"] if names else []
            wrong += (
                [] if names else [f"{key}_std is {claimed}, not {kinds['sample']:.6f} or {kinds['population']:.6f}"]
            )
    if "bytes_total" in claims and (sizes := [r["artifact_bytes"] for r in seeds.values() if "artifact_bytes" in r]):
        largest = max((size for size in sizes if _number(size)), default=math.nan)
        if claims["bytes_total"] != largest:
            wrong.append(f"bytes_total is {claims['bytes_total']!s:.20}, the largest seed has {largest}")
    right = False if wrong else True if said else None
    return judge("submission.means", right, first_few(wrong or said) or "no results by seed: see the README", source)


def _derived(claims: dict[str, Any], seeds: dict[str, dict[str, Any]], runs: Sequence[RunLog]) -> Finding:
    """Fields that follow from other fields or from the logs."""

    def column(key: str) -> list[float]:
        return [result[key] for result in seeds.values() if _number(result.get(key))]

    sizes, steps, paces = column("artifact_bytes"), column("steps"), column("step_avg_ms")
    follows: dict[str, tuple[list[float], float]] = {
        "artifact_bytes_max": ([max(sizes)] if sizes else [], 0.5),
        "artifact_bytes_mean": ([statistics.fmean(sizes)] if sizes else [], 1.0),
        "train_steps_mean": ([statistics.fmean(steps)] if steps else [], 0.5),
        "step_avg_ms_mean": ([statistics.fmean(paces)] if paces else [], 0.1),
        "bytes_code": ([log.code_bytes for log in runs if log.code_bytes is not None], 0.5),
        "bytes_model": ([log.model_bytes for log in runs if log.model_bytes is not None], 0.5),
    }
    if _number(base := claims.get("comparison_baseline_bpb")) and _number(claims.get("val_bpb")):
        gain = claims["val_bpb"] - base
        follows["delta_vs_leaderboard_bpb"] = ([gain, -gain], 1e-6)
    stated = {key: values for key, values in follows.items() if key in claims and values[0]}
    wrong = [
        f"{key} is {claims[key]!s:.20}, not {first_few(f'{value:.10g}' for value in dict.fromkeys(values))}"
        for key, (values, least) in stated.items()
        if not any(agrees(claims[key], value, least) for value in values)
    ]
    text = first_few(wrong) or f"fields that follow from the others: {len(stated)}"
    return judge("submission.derived", not wrong, text, "submission.json: sizes, steps and differences")


def _compliance(claims: dict[str, Any], folder: Folder, seeds: dict[str, dict[str, Any]], rules: Rules) -> Finding:
    """What the submission says of itself, and whether its own numbers say the same."""
    flags = claims.get("compliance")
    source = "submission.json `compliance`"
    if not isinstance(flags, dict):
        return judge("submission.compliance", None, "there is no such object: see the README", source)
    sizes = [log.total_bytes for log in folder.runs if log.total_bytes is not None]
    short = 0 < (len(seeds) or len(folder.runs)) < rules.record_seeds.value
    contradicted = [
        f"{key} is claimed"
        for key, broken in (
            ("three_seeds", short),
            ("artifact_under_16mb", max(sizes, default=0) > rules.artifact.value),
        )
        if flags.get(key) is True and broken
    ]
    if contradicted:
        return judge("submission.compliance", False, f"{first_few(contradicted)}, the files say otherwise", source)
    denied = [str(key) for key, value in flags.items() if value is False]
    if not denied:
        return judge("submission.compliance", True, f"{len(flags)} flags, none denied", source)
    excused = not folder.record and RECORDS_ONLY.issuperset(denied)
    text = f"the submission itself denies {first_few(denied)}{'; not a record, so they are not asked' * excused}"
    return judge("submission.compliance", None if excused else False, text, source)


def _disclosed(claims: dict[str, Any], seeds: dict[str, Any], runs: Sequence[RunLog]) -> Finding:
    """Seeds that ran but do not count."""
    source = "PR 1769: the best 5 of 7 runs; official README: no brute force over seeds"
    listed = claims.get("seeds") if isinstance(claims.get("seeds"), list) else []
    counted = set(seeds) or {str(seed) for seed in listed or ()}
    extra = sorted(str(log.seed) for log in runs if log.seed is not None and str(log.seed) not in counted)
    told = claims.get("seed_results_all_runs_disclosure")
    if seeds and listed and {str(seed) for seed in listed} != set(seeds):
        text = f"`seeds` is {first_few(map(str, listed))}, `seed_results` has {first_few(seeds)}"
        return judge("seeds.selected", False, text, source)
    if counted and extra:
        return judge("seeds.selected", False, f"logs of seeds that do not count: {first_few(extra)}", source)
    if isinstance(told, list | dict) and len(told) > max(len(counted), 1):
        text = f"{len(told)} runs are disclosed, {len(counted)} count: see whether the others are of this configuration"
        return judge("seeds.selected", None if counted else False, text, source)
    if isinstance(told, list | dict):
        return judge("seeds.selected", True, f"all disclosed runs count: {len(told)}", source)
    return judge("seeds.selected", None, "no list of all runs that were made: ask the author", source)


def _count(seeds: dict[str, Any], folder: Folder, rules: Rules) -> Finding:
    count = len(seeds) or len(folder.runs)
    text = f"{count} of {rules.record_seeds.value} runs"
    if not folder.record and count < rules.record_seeds.value:
        return judge("seeds.count", None, f"{text}; not a record, so they are not asked", rules.record_seeds.source)
    return judge("seeds.count", count >= rules.record_seeds.value, text, rules.record_seeds.source)


def _significance(
    claims: dict[str, Any], seeds: dict[str, Any], runs: Sequence[RunLog], rules: Rules, base: Sequence[float]
) -> Finding:
    """The record test on losses of `base`; without them, against the BPB that the claim compares itself with."""
    source = f"{rules.record_margin.source}; {rules.record_p_value.source}"
    losses = [r["val_loss"] for r in seeds.values() if _number(r.get("val_loss"))]
    bits = [r["val_bpb"] for r in seeds.values() if _number(r.get("val_bpb"))]
    margin, level = rules.record_margin.value, rules.record_p_value.value
    if base and len(losses) > 1 and len(set(losses)) > 1:
        test = shifted_welch(losses, base, margin)
        return judge("seeds.significance", test.p < level, f"t {test.t:.2f}, p {test.p:.4f} (Welch)", source)
    other = claims.get("comparison_baseline_bpb")
    if not _number(other) or len(bits) < 2 or len(bits) != len(losses) or statistics.stdev(bits) == 0:
        text = "no losses of the record by seed: give them with --base"
        return judge("seeds.significance", None, text, source)
    assert isinstance(other, int | float)
    shift = margin * statistics.fmean(bits) / statistics.fmean(losses)  # nats per token to bits per byte
    spread = statistics.stdev(bits) / math.sqrt(len(bits))
    t = (other - statistics.fmean(bits) - shift) / spread
    p = student_tail(t, len(bits) - 1)
    text = f"against {other} BPB taken as exact: t {t:.2f}, p {p:.4f}; its own spread would raise p"
    return judge("seeds.significance", None if p < level else False, text, source)


def check_equal(runs: Sequence[RunLog]) -> list[Finding]:
    """Relation 7: the seeds of one submission ran one program with one configuration."""
    source = "PR 2124: the third seed ran another configuration; issue 1594"
    dumps = [log for log in runs if log.hyperparameters]
    if len(runs) == 1:
        return [judge("seeds.config", True, "one log", source), judge("seeds.code", True, "one log", source)]
    if len(dumps) < 2:
        return [judge("seeds.config", None, f"{len(dumps)} of {len(runs)} logs name their hyperparameters", source)]
    keys = sorted({key for log in dumps for key in log.hyperparameters})
    differing = []
    for key in keys:
        values = [log.hyperparameters.get(key) for log in dumps]
        machine = any(value and ("/" in value or value.endswith((".pt", ".txt"))) for value in values)
        if key not in OWN and not machine and len(set(values)) > 1:
            differing.append(f"{key}: {first_few(str(v)[:30] for v in dict.fromkeys(values))}")
    found = [judge("seeds.config", not differing, first_few(differing) or f"{len(keys)} keys are equal", source)]
    for name, text in (("code_bytes", "code sizes"), ("chunks", "chunks of adaptation"), ("train_shards", "shards")):
        distinct = {str(value) for log in runs if (value := getattr(log, name)) not in (None, [])}
        if len(distinct) > 1:
            found.append(judge("seeds.code", False, f"{text} differ: {first_few(sorted(distinct))}", source))
    if len(found) == 1:
        found.append(judge("seeds.code", True, "code size, shards and chunks are equal", source))
    return found
