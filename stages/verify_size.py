"""The gate: bytes of code and weights against the cap, clocks against the rules. Exit 1 when one fails."""

from pathlib import Path
from typing import Any

import typer

from pgolf import artifacts, paths
from pgolf.console import progress, stage_main, table
from pgolf.errors import InputError
from pgolf.rules import load_rules
from pgolf.sections import load_sections
from pgolf.submit.gate import GateReport, gate
from pgolf.submit.shipped import shipped_code

STAGES = ("tokenize", "train", "score", "calibrate", "compress", "evaluate")


def verify_size(params: Path = paths.PARAMS) -> None:
    """Pack the runtime closure, count it with the model and judge the run; the report is written before a failure."""
    sections = load_sections(params)
    metrics = {stage: artifacts.read_json(paths.metrics(stage), stage) for stage in STAGES}
    bytes_model = artifacts.require(paths.ARTIFACT, "compress").stat().st_size
    if metrics["evaluate"]["artifact_sha256"] != artifacts.sha256(paths.ARTIFACT):
        raise InputError(f"the score in metrics/ is not that of {paths.ARTIFACT}: run `pgolf evaluate` again")
    rules, cap = load_rules(), sections.verify_size.cap_bytes
    if cap > rules.artifact.value:
        raise InputError(f"`verify_size.cap_bytes` is {cap}, above the challenge's {rules.artifact.value}: lower it")
    with progress("verify-size") as show:
        show("packing the runtime closure")
        code = shipped_code(sections.resolved(), metrics["tokenize"]["tokenizer_vocab_size"])
    report = gate(metrics, bytes_model, len(code), rules, cap)
    artifacts.write_bytes(paths.PACKED_CODE, code)
    artifacts.write_json(paths.VERIFY, report.to_json())
    artifacts.write_json(paths.metrics("verify-size"), report.metrics())
    _tables(metrics, report)
    if report.failed:
        raise typer.Exit(1)


def _tables(metrics: dict[str, dict[str, Any]], report: GateReport) -> None:
    rows = [
        (row.name, _number(row.limit), _number(row.actual), _number(row.margin), row.verdict) for row in report.rows
    ]
    table("gates", ("gate", "limit", "actual", "margin", "verdict"), rows)
    score, final = metrics["score"], metrics["evaluate"]
    gap = final["quantized_bpb"] - score["prequant_bpb"]
    result = [
        ("validation BPB before quantization", f"{score['prequant_bpb']:.5f}"),
        ("validation BPB quantized, plain windows", f"{final['quantized_bpb']:.5f}  (gap {gap:+.5f})"),
        ("validation BPB of the artifact", f"{final['val_bpb']:.5f}"),
        ("bytes: code + model", f"{report.bytes_code:,} + {report.bytes_model:,}"),
        ("bytes under the cap", f"{report.metrics()['margin_bytes']:,}"),
    ]
    table("result", ("", "value"), result)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    stage_main(verify_size)
