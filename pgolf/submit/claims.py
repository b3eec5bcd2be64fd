"""`submission.json`: every field of the challenge, each derived from the runs, none empty."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgolf.errors import InputError
from pgolf.rules import Rules
from pgolf.runs import Run
from pgolf.submit.evidence import Evidence
from pgolf.submit.leaderboard import Published
from pgolf.submit.significance import shifted_welch, summarize_sample
from pgolf.submit.techniques import Technique

SAME_TEXT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What only the author knows."""

    author: str
    github_id: str
    name: str
    blurb: str
    date: str
    """ISO date."""
    track: str

    def __post_init__(self) -> None:
        for key in self.__slots__:
            if not str(getattr(self, key)).strip():
                raise InputError(f"`{key}` is empty: a submission states it")


def claims(
    about: About, found: Sequence[Evidence], base: Published, rules: Rules, techniques: Sequence[Technique],
    disclosed: Sequence[Run],
) -> dict[str, Any]:  # fmt: skip
    """The whole object; means over seeds, sample deviations, sizes of the largest run."""
    losses, scores = [each.val_loss for each in found], [each.val_bpb for each in found]
    totals = [each.bytes_total for each in found]
    steps = [each.run.value("train", "steps") for each in found]
    first = found[0]
    loss, bpb = summarize_sample(losses), summarize_sample(scores)
    fields = {
        **{key: getattr(about, key) for key in About.__slots__},
        "val_loss": loss.mean,
        "val_bpb": bpb.mean,
        "val_loss_std": loss.std or 0.0,
        "val_bpb_std": bpb.std or 0.0,
        "std_definition": "sample, divisor n - 1" if len(found) > 1 else "one run: no spread is known, 0 stands for it",
        "seeds": [each.seed for each in found],
        "seed_results": {str(each.seed): _seed_result(each) for each in found},
        "artifact_bytes_mean": round(sum(totals) / len(totals)),
        "artifact_bytes_max": max(totals),
        "bytes_total": max(totals),
        "bytes_code": first.bytes_code,
        "bytes_model": max(each.bytes_model for each in found),
        "train_steps_mean": sum(steps) / len(steps),
        "step_avg_ms_mean": sum(each.step_ms for each in found) / len(found),
        "hardware": first.run.value("train", "hardware"),
        "pytorch_version": first.version("torch"),
        "cuda_version": first.version("cuda"),
        "flash_attn_version": first.version("flash_attn"),
        "technique_summary": "; ".join(row.name for row in techniques),
        "calibration": f"Hessians from {first.calibration}; their seconds are charged to the training clock",
        "compliance": compliance(found, rules),
        "attribution": [{"technique": row.name, "source": row.source} for row in techniques],
        "seed_results_all_runs_disclosure": [disclosure(run) for run in disclosed],
        "submission_type": "record candidate" if about.track == "track_10min_16mb" else "non-record",
        "supports_pr": "none",
        **_comparison(found, base, rules),
    }
    assert None not in fields.values(), fields
    return fields


def compliance(found: Sequence[Evidence], rules: Rules) -> dict[str, bool]:
    """Each claim as measured. Seconds are those of the hardware that the submission names, whatever the rules make of
    it; not all of those of a resumed run are on the clock, so they show nothing.
    """
    clocks = [_clocks(each) for each in found]
    return {
        "train_under_600s": all(train <= rules.train_clock.value for train, _ in clocks),
        "artifact_under_16mb": all(each.bytes_total <= rules.artifact.value for each in found),
        "eval_under_600s": all(scored <= rules.evaluation_clock.value for _, scored in clocks),
        "no_slot": True,  # none of the four exists in this program; `evaluate.cache`, of states, is disclosed
        "no_pre_quant_ttt": True,
        "no_etlb": True,
        "no_ngram_cache": True,
        "score_first_ttt": True,
        "three_seeds": len(found) >= rules.record_seeds.value,
    }


def _clocks(each: Evidence) -> tuple[float, float]:
    """Seconds of training with calibration, and of evaluation; infinite where nobody measured all of them."""
    train, calibrate = each.run.metrics["train"], each.run.value("calibrate", "calibrate_seconds")
    seconds = each.run.value("train", "train_seconds") + calibrate if train.get("record_eligible", True) else math.inf
    return seconds, each.run.value("evaluate", "eval_seconds")


def disclosure(run: Run) -> str:
    """One run that was made, chosen or not."""
    score = run.metrics.get("evaluate", {}).get("val_bpb")
    return f"{run.name}: seed {run.seed}, " + (f"val_bpb {score!r}" if score is not None else "not scored")


def _seed_result(each: Evidence) -> dict[str, Any]:
    run = each.run
    return {
        "val_loss": each.val_loss,
        "val_bpb": each.val_bpb,
        "artifact_bytes": each.bytes_total,
        "steps": run.value("train", "steps"),
        "step_avg_ms": each.step_ms,
        "eval_time_s": round(run.value("evaluate", "eval_seconds"), 1),
        "train_time_s": each.train_ms / 1000,
        "pre_quant": round(run.value("score", "prequant_bpb"), 8),
        "quantized": round(run.value("evaluate", "quantized_bpb"), 8),
        "scored_tokens": run.value("evaluate", "scored_tokens"),
        "scored_bytes": run.value("evaluate", "scored_bytes"),
    }


def _comparison(found: Sequence[Evidence], base: Published, rules: Rules) -> dict[str, Any]:
    """The candidate against a published record: nats per token of the record's own stream, through bytes."""
    per_bpb = math.log(2) * base.scored_bytes / base.scored_tokens
    ours, theirs = [each.val_bpb * per_bpb for each in found], list(base.losses().values())
    gain = summarize_sample(ours).mean - summarize_sample(theirs).mean
    fields: dict[str, Any] = {
        "comparison_baseline_bpb": summarize_sample(list(base.bpb.values())).mean,
        "comparison_source": base.source,
        "delta_vs_leaderboard_bpb": gain / per_bpb,
        "delta_vs_leaderboard_nats": gain,
    }
    scored = found[0].run.value("evaluate", "scored_bytes")
    reason = ""
    if abs(scored / base.scored_bytes - 1) > SAME_TEXT:
        reason = f"another text: {scored} bytes were scored, {base.scored_bytes} there; the difference means nothing"
    else:
        try:
            test = shifted_welch(ours, theirs, rules.record_margin.value)
            return fields | {"t_statistic": test.t, "welch_df": test.df, "p_value": test.p, "significance": "tested"}
        except InputError as error:
            reason = str(error)
    return fields | {"significance": f"not tested: {reason}"}
