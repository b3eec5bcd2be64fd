"""The README of a submission: what reviewers ask for, in their order, every number from a log beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from pgolf.rules import Rules
from pgolf.submit.evidence import Evidence
from pgolf.submit.techniques import Technique

CONDITIONS = {
    "C1 strict causal dependence": "causal attention; windows hold only earlier tokens; nothing from outside is read",
    "C2 full normalised distribution": "one softmax over the whole vocabulary{cache}, before the target is read",
    "C3 score before update": "{update}",
    "C4 single left-to-right pass": "{tokens} of {tokens} targets, each scored once; the losses were added once",
}
"""Issue 1017 -> how this program meets it."""

TEMPLATE = """\
# {name}

**val_bpb {val_bpb:.8f}** ({runs}), {bytes_total:,} bytes of {cap:,}. {blurb}

Against {baseline:.8f} BPB ({source}): {delta_bpb:+.8f} BPB, {delta_nats:+.8f} nats per token of that stream.
{significance}

## Results

{seeds}

Mean {val_bpb:.8f} BPB, {val_loss:.8f} nats per token; standard deviation {val_bpb_std:.8f} BPB, {val_loss_std:.8f}
nats ({std_definition}). Every run that was made:

{disclosure}

## Techniques

{techniques}

## Commands

```sh
pip install -r requirements.txt
{commands}
```

`DATA_PATH` is the folder with the shards. The program trains, quantizes, writes the artifact and scores it; all other
settings are inside it and stand in the logs. No system package is needed.

## Data

Training shards: {train_shards}, {train_tokens:,} tokens; validation: {val_documents:,} documents, {scored_tokens:,}
scored targets of {scored_bytes:,} bytes ({rho:.7f} targets per byte). Tokenizer: `tokenizer.model`, SHA-256
`{tokenizer}`.

## Compliance

{conditions}

{compliance}

Clocks count as passed only on {reference}. This ran on {hardware}: training clock {train_verdict}, evaluation clock
{eval_verdict}. Calibration: {calibration}.

## Code

`train_gpt.py` is what is counted: {bytes_code:,} bytes. It is `source/` as one module, without what these parameters
do not reach, with short names, compressed. `python prove.py` makes it again from `source/` and compares.

## Versions

Python {python}, torch {torch}, CUDA {cuda}, flash-attn {flash}, attention by {attention}.

## Files

{files}

Known deviations: the logs were written from the stages' metrics and training trace after each run, not while it ran.
Credits stand in the column "source" above.
"""


def readme(
    claims: Mapping[str, Any], found: Sequence[Evidence], techniques: Sequence[Technique], rules: Rules,
    files: Mapping[str, str],
) -> str:  # fmt: skip
    """The text; `claims` is submission.json, `files`: name -> what it is."""
    first = found[0]
    run, gates = first.run, first.run.metrics.get("verify-size", {})
    stream = {key: run.value("evaluate", key) for key in ("scored_tokens", "scored_bytes")}
    training = first.manifest["train"]
    updates = {"none": "the weights never change"}
    form = first.params["evaluate"]["ttt"]
    update = updates.get(form, f"test-time training ({form}) reads tokens only after their loss is stored")
    slots = {"update": update, "cache": _cache(first.params["evaluate"]), "tokens": f"{stream['scored_tokens']:,}"}
    conditions = [(name, text.format(**slots)) for name, text in CONDITIONS.items()]
    return TEMPLATE.format(
        **{key: claims[key] for key in (
            "name", "blurb", "val_bpb", "val_loss", "val_bpb_std", "val_loss_std", "std_definition", "bytes_total",
            "bytes_code", "hardware", "calibration",
        )},
        **stream,
        runs="1 run" if len(found) == 1 else f"mean of {len(found)} seeds, std {claims['val_bpb_std']:.8f}",
        cap=rules.artifact.value, baseline=claims["comparison_baseline_bpb"], source=claims["comparison_source"],
        delta_bpb=claims["delta_vs_leaderboard_bpb"], delta_nats=claims["delta_vs_leaderboard_nats"],
        significance=_significance(claims, rules), seeds=_seeds(claims),
        disclosure="\n".join(f"* {line}" for line in claims["seed_results_all_runs_disclosure"]),
        techniques=_table(("technique", "parameter", "source"), techniques),
        commands="\n".join(
            f"DATA_PATH=tokens TOKENIZER_PATH=tokenizer.model ARTIFACT_PATH=model_seed{each.seed}.pgolf "
            f"SEED={each.seed} python train_gpt.py"
            for each in found
        ),
        train_shards=len(training["shards"]), train_tokens=training["tokens"],
        val_documents=run.value("tokenize", "val_documents"), rho=stream["scored_tokens"] / stream["scored_bytes"],
        tokenizer=first.manifest["tokenizer_sha256"], conditions=_table(("condition", "here"), conditions),
        compliance=_table(("claim", "holds"), list(claims["compliance"].items())),
        reference=rules.reference_hardware.value, train_verdict=gates.get("training_clock_verdict", "unknown"),
        eval_verdict=gates.get("evaluation_clock_verdict", "unknown"), python=first.version("python"),
        torch=first.version("torch"), cuda=first.version("cuda"), flash=first.version("flash_attn"),
        attention=run.value("train", "attention"), files=_table(("file", "what it is"), list(files.items())),
    )  # fmt: skip


def _cache(evaluate: Mapping[str, Any]) -> str:
    constants = evaluate["cache"]
    if not constants["sharpness"]:
        return ""
    values = ", ".join(f"{name} {value:g}" for name, value in constants.items())
    return f", mixed with normalised weights of the document's scored targets that followed similar states ({values})"


def _significance(claims: Mapping[str, Any], rules: Rules) -> str:
    if claims["significance"] != "tested":
        return f"Significance: {claims['significance']}."
    return (
        f"One-sided Welch test against a margin of {rules.record_margin.value:g} nats: "
        f"t = {claims['t_statistic']:.4f}, {claims['welch_df']:.2f} degrees of freedom, p = {claims['p_value']:.3g} "
        f"(the rule: below {rules.record_p_value.value:g})."
    )


def _seeds(claims: Mapping[str, Any]) -> str:
    columns = ("seed", "steps", "ms/step", "pre-quant BPB", "quantized BPB", "BPB", "nats per token", "bytes")
    keys = ("steps", "step_avg_ms", "pre_quant", "quantized", "val_bpb", "val_loss", "artifact_bytes")
    return _table(columns, [(seed, *(row[key] for key in keys)) for seed, row in claims["seed_results"].items()])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)
