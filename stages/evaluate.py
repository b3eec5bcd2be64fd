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
from pgolf.evaluate.run import references
from pgolf.evaluate.score import subset_scores
from pgolf.evaluate.updates import as_table
from pgolf.model.attention import backend
from pgolf.params import section
from pgolf.quant.artifact import decode_model


def evaluate(params: Path = paths.PARAMS) -> None:
    """Score every validation target exactly once and save the loss of each."""
    config = section(params, "evaluate", EvaluateConfig)
    device, dtype = pick_device()
    blob = artifacts.require(paths.ARTIFACT, "compress").read_bytes()
    shipped, tokens = artifacts.sha256(paths.ARTIFACT), open_tokens(paths.TOKENS, paths.TOKENIZER)
    clock, pace = Clock(), list[tuple[float, float]]()
    with progress("evaluate") as show:

        def report(phase: str, done: int, total: int) -> None:
            show.count(f"{clock.seconds('evaluate'):.0f} s, {phase}")(done, total)
            pace.append((done / max(total, 1), clock.seconds("evaluate")))

        with clock.phase("evaluate"):
            model, header = decode_model(blob, device, dtype)
            tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
            result = run_evaluation(model, tokens.val, tokens.val_bytes, config, report)
            synchronize(device)
        share, seconds = (list(column) for column in zip(*pace, strict=True))
        artifacts.write_json(paths.PACE, {"share": share, "seconds": seconds})
        compared = references(model, tokens.val, tokens.val_bytes, config, result, report)
    plain, unadapted = compared.plain, compared.unadapted
    losses = {"losses": result.losses, "plain_losses": compared.plain_losses, "unadapted": compared.unadapted_losses}
    artifacts.save(
        paths.LOSSES,
        {name: torch.from_numpy(found) for name, found in losses.items() if found is not None}
        | {"updates": as_table(result.updates)},
        schema="pgolf.losses",
        stage="evaluate",
        params=to_dict(config),
        inputs={"artifact": shipped, "manifest": artifacts.sha256(paths.TOKENS / "manifest.json")},
    )
    score, bits = result.score, result.score.loss * result.score.tokens / math.log(2)
    metrics = {
        "val_bpb": score.bpb,
        "val_loss": score.loss,
        "val_bpb_raw": bits / tokens.val_raw_bytes if tokens.val_raw_bytes else "unavailable",
        "quantized_bpb": plain.bpb,
        "quantized_loss": plain.loss,
        "ttt_gain_bpb": unadapted.bpb - score.bpb if unadapted else "unavailable",
        "update_steps": sum(update.steps for update in result.updates),
        "eval_seconds": clock.seconds("evaluate"),
        "warmup_seconds": 0.0,
        "scored_tokens": score.tokens,
        "scored_bytes": score.bytes,
        "hardware": hardware_name(device),
        "attention": backend(device, dtype, model.config.head_dim, packed=False),
        "artifact_sha256": shipped,
    }
    metrics |= subset_scores("quantized", compared.plain_losses, tokens.val_bytes[1:], config.subset_targets)
    artifacts.write_json(paths.metrics("evaluate"), metrics)


if __name__ == "__main__":
    stage_main(evaluate)
