"""Weights and Hessians to codes, scales and small tensors."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.budget import Clock
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.console import progress, stage_main, table
from pgolf.errors import InputError
from pgolf.model.gpt import matrix_inputs
from pgolf.params import section
from pgolf.quant.canonical import canonical
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.summary import class_rows, kept_weights, lqer_rows, quantize_metrics


def quantize(params: Path = paths.PARAMS) -> None:
    """Round the weights with GPTQ on SDClip grids, from stored Hessians: no forward pass, no retraining."""
    config = section(params, "quantize", QuantizeConfig)
    checkpoint = load_checkpoint(paths.MODEL)
    hessians, meta = artifacts.load(paths.HESSIANS, schema="pgolf.hessians", made_by="calibrate")
    if meta["inputs"]["checkpoint"] != checkpoint.sha256:
        raise InputError(f"{paths.HESSIANS} belongs to another checkpoint: run `pgolf calibrate` again")
    clock = Clock()
    with progress("quantize") as show, clock.phase("quantize"):
        sources = matrix_inputs(checkpoint.config)
        done = quantize_model(checkpoint.state, hessians, sources, config, lambda report: show(report.name))
        if config.canonical:
            done = done._replace(tensors=canonical(done.tensors, checkpoint.config))
    kept = kept_weights(done.tensors)
    table("quantization", ("class", "weights", "bits", "entropy", "relative error"), class_rows(done.reports, kept))
    if corrections := lqer_rows(done.reports):
        table("low-rank corrections", ("matrix", "bytes", "relative error before", "after"), corrections)
    artifacts.save(
        paths.QUANTIZED,
        done.tensors,
        schema="pgolf.quantized",
        stage="quantize",
        params={"model": to_dict(checkpoint.config), "quantize": to_dict(config)},
        inputs={"checkpoint": checkpoint.sha256, "hessians": artifacts.sha256(paths.HESSIANS)},
        extra={"vocab_size": checkpoint.vocab_size, "tokenizer": checkpoint.tokenizer},
    )
    metrics = {"quantize_seconds": clock.seconds("quantize"), "small_weights": kept["small"]}
    artifacts.write_json(paths.metrics("quantize"), quantize_metrics(done.reports) | metrics)


if __name__ == "__main__":
    stage_main(quantize)
