"""The compressed artifact on the validation set: what is scored is what ships."""

import math
from pathlib import Path

import torch

from pgolf import artifacts, paths
from pgolf.budget import Clock
from pgolf.config import to_dict
from pgolf.console import progress, stage_main
from pgolf.data.tokens import open_tokens
from pgolf.device import hardware_name, pick_device, synchronize
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.run import evaluate as run_evaluation
from pgolf.params import section
from pgolf.quant.artifact import decode_model


def evaluate(params: Path = paths.PARAMS) -> None:
    """Score every validation target exactly once and save the loss of each."""
    config = section(params, "evaluate", EvaluateConfig)
    device, dtype = pick_device()
    blob = artifacts.require(paths.ARTIFACT, "compress").read_bytes()
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    clock = Clock()
    with progress("evaluate") as show, clock.phase("evaluate"):
        model, header = decode_model(blob, device, dtype)
        tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
        result = run_evaluation(
            model, tokens.val, tokens.val_bytes, config, lambda phase, done, total: show.count(phase)(done, total)
        )
        synchronize(device)
    artifacts.save(
        paths.LOSSES,
        {"losses": torch.from_numpy(result.losses)},
        schema="pgolf.losses",
        stage="evaluate",
        params=to_dict(config),
        inputs={
            "artifact": artifacts.sha256(paths.ARTIFACT),
            "manifest": artifacts.sha256(paths.TOKENS / "manifest.json"),
        },
    )
    bits = result.final.loss * result.final.tokens / math.log(2)
    metrics = {
        "val_bpb": result.final.bpb,
        "val_loss": result.final.loss,
        "val_bpb_raw": bits / tokens.val_raw_bytes if tokens.val_raw_bytes else "unavailable",
        "quantized_bpb": result.plain.bpb,
        "quantized_loss": result.plain.loss,
        "ttt_gain_bpb": 0.0,
        "eval_seconds": clock.seconds("evaluate"),
        "warmup_seconds": 0.0,
        "scored_tokens": result.final.tokens,
        "scored_bytes": result.final.bytes,
        "hardware": hardware_name(device),
        "artifact_sha256": artifacts.sha256(paths.ARTIFACT),
    }
    artifacts.write_json(paths.metrics("evaluate"), metrics)


if __name__ == "__main__":
    stage_main(evaluate)
