"""Weights and Hessians to codes, scales and small tensors."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.budget import Clock
from pgolf.checkpoint_file import load_checkpoint
from pgolf.codec.config import CompressConfig
from pgolf.config import to_dict
from pgolf.console import progress, stage_main, table
from pgolf.device import pick_device
from pgolf.errors import InputError
from pgolf.params import section
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.run import run_quantization
from pgolf.quant.summary import class_rows, fit_metrics, kept_weights, lqer_rows, quantize_metrics
from pgolf.sections import load_sections
from pgolf.submit.shipped import shipped_code


def quantize(params: Path = paths.PARAMS) -> None:
    """Round the weights with GPTQ on SDClip grids, from stored Hessians: no forward pass, no retraining."""
    config, codec = section(params, "quantize", QuantizeConfig), section(params, "compress", CompressConfig).codec
    checkpoint = load_checkpoint(paths.MODEL)
    hessians, meta = artifacts.load(paths.HESSIANS, schema="pgolf.hessians", made_by="calibrate")
    if meta["inputs"]["checkpoint"] != checkpoint.sha256:
        raise InputError(f"{paths.HESSIANS} belongs to another checkpoint: run `pgolf calibrate` again")
    clock = Clock()
    with progress("quantize") as show, clock.phase("quantize"):
        run = run_quantization(
            checkpoint.state, hessians, checkpoint.config, config, checkpoint.tokenizer, codec,
            lambda: len(shipped_code(load_sections(params).resolved(), checkpoint.vocab_size)), show, pick_device()[0],
        )  # fmt: skip
        done = run.quantized
    kept = kept_weights(done.tensors)
    table("quantization", ("class", "weights", "bits", "entropy", "relative error"), class_rows(done.reports, kept))
    if corrections := lqer_rows(done.reports):
        table("low-rank corrections", ("matrix", "bytes", "relative error before", "after"), corrections)
    artifacts.save(
        paths.QUANTIZED,
        done.tensors,
        schema="pgolf.quantized",
        stage="quantize",
        params={"model": to_dict(checkpoint.config), "quantize": to_dict(run.config)},
        inputs={"checkpoint": checkpoint.sha256, "hessians": artifacts.sha256(paths.HESSIANS)},
        extra={
            "vocab_size": checkpoint.vocab_size,
            "tokenizer": checkpoint.tokenizer,
            "errors": {report.name: report.relative_error for report in done.reports},
        },
    )
    metrics = {"quantize_seconds": clock.seconds("quantize"), "small_weights": kept["small"]}
    artifacts.write_json(paths.metrics("quantize"), quantize_metrics(done.reports) | metrics | fit_metrics(run))


if __name__ == "__main__":
    stage_main(quantize)
