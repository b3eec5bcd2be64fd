"""Tokens to weights: preflight, training on the clock, averaged weights and the trace."""

from pathlib import Path
from typing import Any

from pgolf import artifacts, paths, ranks
from pgolf.adopted import take_adopted
from pgolf.config import to_dict
from pgolf.console import Progress, console, progress, stage_main
from pgolf.data.tokens import open_tokens
from pgolf.device import hardware_name, peak_memory_bytes, pick_device
from pgolf.launch import on_all_gpus
from pgolf.model.attention import backend
from pgolf.model.config import ModelConfig
from pgolf.params import section
from pgolf.preflight import preflight, versions
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.config import TrainConfig
from pgolf.train.loop import Report
from pgolf.train.openings import observer
from pgolf.train.run import run_training
from pgolf.train.schedule import largest_world


def train(params: Path = paths.PARAMS) -> None:
    """Train the model and keep the average of its weights, or take adopted ones; an interrupted run goes on."""
    model_config, config = section(params, "model", ModelConfig), section(params, "train", TrainConfig)
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    projected = preflight(params, tokens.vocab_size).bytes_model
    if config.adopt.file:
        taken = take_adopted(model_config, config, tokens) | {"hardware": hardware_name(pick_device()[0])}
        artifacts.write_json(paths.metrics("train"), {**taken, **versions()})
        return
    if on_all_gpus("train", params, largest_world(config)):
        return
    ranks.start()
    device, dtype = pick_device()
    attention = backend(device, dtype, model_config.head_dim, packed=config.batches == "packed")
    hardware = hardware_name(device, ranks.world())
    console.print(f"train: {hardware}, attention by {attention}", soft_wrap=True, markup=False)
    inputs = {"manifest": artifacts.sha256(paths.TOKENS / "manifest.json")}
    resolved = {"model": to_dict(model_config), "train": to_dict(config)}
    checkpoints = Checkpoints(paths.SCRATCH, {**resolved, **inputs})
    if resume := checkpoints.load():
        console.print(f"train: goes on from step {resume.step:,} after {resume.seconds:,.1f} s")
    with progress("train") as show:
        run = run_training(
            model_config, config, tokens.vocab_size, tokens.train, device, dtype, resume=resume, save=checkpoints.save,
            report=lambda now: _show(show, now, projected), observe=observer(tokens.train, config.seq_len, device),
        )  # fmt: skip
    if ranks.rank():
        return
    done = run.trained
    provenance: dict[str, Any] = {"stage": "train", "params": resolved, "inputs": inputs}
    model_extra = {"vocab_size": tokens.vocab_size, "tokenizer": tokens.tokenizer_sha256}
    artifacts.save(paths.AVERAGES, run.averages, schema="pgolf.averages", **provenance)
    artifacts.save(paths.TRACE, done.trace, schema="pgolf.trace", **provenance)
    artifacts.save(paths.MODEL, run.model.state_dict(), schema="pgolf.checkpoint", **provenance, extra=model_extra)
    metrics = {
        "steps": done.steps, "tokens": done.tokens, "train_seconds": done.seconds, "train_loss": done.loss,
        "compile_seconds": run.compile_seconds, "tokens_per_second": done.tokens / done.seconds,
        "peak_memory_bytes": peak_memory_bytes(device), "world_size": ranks.world(), "hardware": hardware,
        "attention": attention, "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "record_eligible": resume is None, **versions(),
    }  # fmt: skip
    artifacts.write_json(paths.metrics("train"), metrics)
    checkpoints.clear()


def _show(show: Progress, report: Report, projected: int) -> None:
    left = f"{report.seconds * (1 - report.fraction) / report.fraction:,.0f} s left  " if report.fraction else ""
    rate = report.tokens / max(report.seconds, 1e-9)
    show(
        f"step {report.step:,} ({report.fraction:.0%})  loss {report.loss:.4f}  {rate:,.0f} tokens/s  "
        f"{left}~{projected:,} bytes"
    )


if __name__ == "__main__":
    stage_main(train)
