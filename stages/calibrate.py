"""Weights and training tokens to Hessians; its seconds are charged to the training clock."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.budget import Clock
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.console import progress, stage_main
from pgolf.data.tokens import open_tokens
from pgolf.device import hardware_name, pick_device
from pgolf.params import section
from pgolf.quant.calibrate import calibrate as collect
from pgolf.quant.calibrate_config import CalibrateConfig


def calibrate(params: Path = paths.PARAMS) -> None:
    """Collect the input covariance of every weight matrix in one pass."""
    config = section(params, "calibrate", CalibrateConfig)
    device, dtype = pick_device()
    checkpoint = load_checkpoint(paths.MODEL)
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    tokens.check_model(paths.MODEL, checkpoint.vocab_size, checkpoint.tokenizer)
    model, clock = checkpoint.build(device, dtype), Clock()
    with progress("calibrate") as show, clock.phase("calibrate"):
        hessians = collect(model, config, tokens.train, lambda done: show.count("batches")(done, config.batches))
    inputs = {"checkpoint": checkpoint.sha256, "manifest": artifacts.sha256(paths.TOKENS / "manifest.json")}
    artifacts.save(
        paths.HESSIANS, hessians, schema="pgolf.hessians", stage="calibrate", params=to_dict(config), inputs=inputs
    )
    metrics = {
        "calibrate_seconds": clock.seconds("calibrate"),
        "calibrate_tokens": (config.batches + config.sensitivity) * config.rows * config.seq_len,
        "calibrate_source": config.source,
        "calibrate_reads_training_data": config.source == "train",  # then its seconds are training time (issue 677)
        "hardware": hardware_name(device),
    }
    artifacts.write_json(paths.metrics("calibrate"), metrics)


if __name__ == "__main__":
    stage_main(calibrate)
