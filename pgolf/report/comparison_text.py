"""A comparison as Markdown: what differs, every metric to its last digit, every run, the test, the words."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.report.compare import Against, Group, differing
from pgolf.rules import Rules
from pgolf.runs import Run
from pgolf.submit.claims import disclosure
from pgolf.submit.significance import Welch, summarize_sample

NO = "-"
SEED_COLUMNS = {
    "steps": ("train", "steps"),
    "train s": ("train", "train_seconds"),
    "pre-quant BPB": ("score", "prequant_bpb"),
    "quantized BPB": ("evaluate", "quantized_bpb"),
    "BPB": ("evaluate", "val_bpb"),
    "nats per token": ("evaluate", "val_loss"),
    "eval s": ("evaluate", "eval_seconds"),
    "bytes": ("verify-size", "bytes_total"),
}
"""Column of the per-seed table -> stage and metric."""


def comparison_text(
    groups: Sequence[Group], results: Sequence[Against], rules: Rules, others: Sequence[Run] = ()
) -> str:
    """The whole comparison; `others`: runs that were made and are not compared, for disclosure."""
    runs = [run for group in groups for run in group.runs]
    parts = [
        "# Parameters that differ", markdown(["parameter", *(run.name for run in runs)], _differing_params(runs)),
        "# Metrics that differ, in full precision", _metrics(runs),
        "# Bytes by group", _bytes(runs),
        "# Every run", per_seed(groups),
        "# Mean and sample standard deviation", spread(groups),
        *(line for result in results for line in _result(result, rules)),
        *(["# Runs made and not compared", "\n".join(f"* {disclosure(run)}" for run in others)] if others else []),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def per_seed(groups: Sequence[Group]) -> str:
    """All runs, also those that were not finished."""
    rows = []
    for group in groups:
        for run in group.runs:
            cells = [run.metrics.get(stage, {}).get(key, NO) for stage, key in SEED_COLUMNS.values()]
            state = "" if run.finished else "not scored"
            rows.append([group.name, run.name, NO if run.seed is None else run.seed, *cells, state])
    return markdown(["group", "run", "seed", *SEED_COLUMNS, ""], rows)


def spread(groups: Sequence[Group]) -> str:
    """Means over the seeds of each group; the deviation divides by n - 1."""
    rows = []
    for group in groups:
        for label, key in (("BPB", "val_bpb"), ("nats per token", "val_loss")):
            if values := [run.value("evaluate", key) for run in group.scored]:
                found = summarize_sample(values)
                rows.append([group.name, label, found.n, found.mean, NO if found.std is None else found.std])
    return markdown(["group", "", "runs", "mean", "std"], rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; floats with every digit they have."""
    if not rows:
        return "None."
    lines = [[cell(value) for value in row] for row in [columns, *rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(columns), *lines[1:]])


def cell(value: Any) -> str:
    """One cell: whole numbers with thousands separators, everything else as Python writes it, None as a dash."""
    if value is None:
        return NO
    text = f"{value:,}" if type(value) is int else repr(value) if isinstance(value, float | bool) else str(value)
    return text.replace("|", "\\|")


def _differing_params(runs: Sequence[Run]) -> list[list[Any]]:
    known = [run for run in runs if "published" not in run.params]
    rows = dict(differing(known, lambda run: run.params))
    return [[key, *(run.params.get(key) for run in runs)] for key in rows]


def _metrics(runs: Sequence[Run]) -> str:
    def flat(run: Run) -> Mapping[str, Any]:
        return {f"{stage}.{key}": value for stage, found in run.metrics.items() for key, value in found.items()}

    return markdown(["metric", *(run.name for run in runs)], [[key, *row] for key, row in differing(runs, flat)])


def _bytes(runs: Sequence[Run]) -> str:
    """Streams of the model, then code, model and both, with the difference between the last run and the first."""
    totals = ("bytes_code", "bytes_model", "bytes_total")
    rows = []
    tables = [dict(run.metrics.get("compress", {})) | dict(run.metrics.get("verify-size", {})) for run in runs]
    streams = dict.fromkeys(key for table in tables for key in table if key.startswith("bytes_") and key not in totals)
    for key in (*streams, *totals):
        values = [table.get(key) for table in tables]
        first, last = values[0], values[-1]
        change = None if first is None or last is None or len(runs) < 2 else f"{last - first:+,}"
        if any(value is not None for value in values):
            rows.append([key.removeprefix("bytes_"), *values, change])
    return markdown(["group", *(run.name for run in runs), "last - first"], rows)


def _result(found: Against, rules: Rules) -> list[str]:
    lines = [f"# `{found.candidate.name}` against `{found.base.name}`"]
    if found.converted:
        lines.append(
            "The tokenizers differ, so nats per token of the two do not compare. The candidate's losses were converted "
            "through bytes: nats per token of the base's stream = BPB ln 2 / (base's tokens per byte). Converted: "
            + ", ".join(repr(loss) for loss in found.losses[1])
        )
    trained = [
        run.metrics["train"]
        for group in (found.base, found.candidate)
        for run in group.scored
        if "train" in run.metrics
    ]
    places = sorted({str(metrics["hardware"]) for metrics in trained if "hardware" in metrics})
    if len(places) > 1:
        lines.append(f"The runs were made on different hardware ({', '.join(places)}): seconds do not compare.")
    margin, level = rules.record_margin, rules.record_p_value
    tests = [("nats per token", found.per_token), ("nats per byte", found.per_byte)]
    rows = [[reading, test.t, test.df, test.p] for reading, test in tests if isinstance(test, Welch)]
    if rows:
        lines.append(f"One-sided Welch test; the rule: {margin.value:g} {margin.unit}, p < {level.value:g}.")
        lines.append(markdown(["margin read as", "t", "df", "p"], rows))
    for name, boot in found.bootstraps:
        lines.append(
            f"{name}, {boot.documents:,} documents resampled: {boot.difference:+.6f} nats per token better, "
            f"{boot.level:.0%} of the draws in [{boot.low:+.6f}, {boot.high:+.6f}], {boot.share:.2%} not better. "
            "This is about documents, not about seeds."
        )
    return [*lines, f"**{found.verdict}**"]
