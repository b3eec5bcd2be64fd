"""The compressed artifact on the validation set: what is scored is what ships."""

from pathlib import Path

import torch

from pgolf import artifacts, paths, ranks
from pgolf.budget import Clock
from pgolf.config import to_dict
from pgolf.console import progress, stage_main
from pgolf.data.tokens import open_tokens
from pgolf.device import hardware_name, pick_device, synchronize
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.measured import document_table, metrics
from pgolf.evaluate.run import evaluate as run_evaluation
from pgolf.evaluate.run import references, warm_up
from pgolf.evaluate.updates import as_table
from pgolf.launch import on_all_gpus
from pgolf.model.attention import backend
from pgolf.params import section
from pgolf.quant.artifact import decode_model


def evaluate(params: Path = paths.PARAMS) -> None:
    """Score every validation target exactly once and save the loss of each."""
    config = section(params, "evaluate", EvaluateConfig)
    if on_all_gpus("evaluate", params):
        return
    ranks.start()
    device, dtype = pick_device()
    blob = artifacts.require(paths.ARTIFACT, "compress").read_bytes()
    shipped, tokens = artifacts.sha256(paths.ARTIFACT), open_tokens(paths.TOKENS, paths.TOKENIZER)
    clock = Clock()
    with progress("evaluate") as show:

        def now() -> float:
            return clock.seconds("evaluate")

        def report(phase: str, done: int, total: int) -> None:
            show.count(f"{now():.0f} s, {phase}")(done, total)

        with clock.phase("evaluate"):
            model, header = decode_model(blob, device, dtype)
            tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
            with clock.phase("warm-up"):
                warm_up(model, config)
                synchronize(device)
            result = run_evaluation(model, tokens.val, tokens.val_bytes, config, report, now)
            synchronize(device)
        compared = references(model, tokens.val, tokens.val_bytes, config, result, report)
    if ranks.rank():
        return
    table = document_table(tokens.val, tokens.val_bytes, result, compared)
    artifacts.write_json(paths.PACE, {"documents": table})
    losses = {"losses": result.losses, "plain_losses": compared.plain_losses, "unadapted": compared.unadapted_losses}
    artifacts.save(
        paths.LOSSES,
        {name: torch.tensor(found) for name, found in losses.items() if found is not None}  # copies: two may be one
        | {"updates": as_table(result.updates)},
        schema="pgolf.losses",
        stage="evaluate",
        params=to_dict(config),
        inputs={"artifact": shipped, "manifest": artifacts.sha256(paths.TOKENS / "manifest.json")},
    )
    found = metrics(config, result, compared, tokens.val_bytes, tokens.val_raw_bytes, now(), ranks.world())
    found |= {
        "warmup_seconds": clock.seconds("warm-up"),
        "hardware": hardware_name(device, ranks.world()),
        "attention": backend(device, dtype, model.config.head_dim, packed=False),
        "artifact_sha256": shipped,
    }
    artifacts.write_json(paths.metrics("evaluate"), found)


if __name__ == "__main__":
    stage_main(evaluate)
