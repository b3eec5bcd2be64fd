"""The numbers of a row: a training and its score, and what quantization and packing make of its weights."""

from typing import Any

from torch import Tensor

from pgolf.budget import Clock
from pgolf.checkpoint_file import Checkpoint
from pgolf.config import canonical, to_dict
from pgolf.console import Progress
from pgolf.data.tokens import Tokens
from pgolf.device import hardware_name, peak_memory_bytes, pick_device
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import Score, summarize, token_losses, windows_for
from pgolf.model.gpt import GPT
from pgolf.quant.artifact import decode_model, encode_model
from pgolf.quant.calibrate import calibrate
from pgolf.quant.run import run_quantization
from pgolf.quant.summary import fit_metrics
from pgolf.sections import Sections
from pgolf.submit.shipped import shipped_code
from pgolf.train.loop import Report
from pgolf.train.run import run_training

Metrics = dict[str, Any]
Hessians = dict[str, dict[str, Tensor]]
"""Calibration, as canonical JSON -> its Hessians, for the rows of one checkpoint."""


def measure_training(sections: Sections, tokens: Tokens, show: Progress) -> tuple[Metrics, GPT]:
    """Train, and score the averaged weights before quantization."""
    device, dtype = pick_device()
    run = run_training(
        sections.model, sections.train, tokens.vocab_size, tokens.train, device, dtype,
        report=lambda report: show(_line(report)),
    )  # fmt: skip
    done, score = run.trained, plain_score(run.model, sections.evaluate, tokens)
    metrics = {
        "bpb": score.bpb,
        "loss": score.loss,
        "train_loss": done.loss,
        "tokens_per_second": done.tokens / done.seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
        "train_seconds": done.seconds,
        "compile_seconds": run.compile_seconds,
        "steps": done.steps,
        "tokens": done.tokens,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "hardware": hardware_name(device),
    }
    return metrics, run.model


def measure_packed(checkpoint: Checkpoint, sections: Sections, tokens: Tokens, hessians: Hessians) -> Metrics:
    """Calibrate, quantize and pack as the stages do: bytes, and the score of what would be shipped.

    `hessians` keeps those of a calibration for the next row that wants the same.
    """
    (device, dtype), clock = pick_device(), Clock()
    wanted = canonical(to_dict(sections.calibrate))
    if wanted not in hessians:
        found = calibrate(checkpoint.build(device, dtype), sections.calibrate, tokens.train)
        hessians[wanted] = {name: hessian.cpu() for name, hessian in found.items()}
    codec, resolved = sections.compress.codec, sections.resolved()
    with clock.phase("quantize"):
        run = run_quantization(
            checkpoint.state, hessians[wanted], checkpoint.config, sections.quantize, checkpoint.tokenizer, codec,
            lambda: len(shipped_code(resolved, checkpoint.vocab_size)), device=device,
        )  # fmt: skip
    with clock.phase("compress"):
        blob = encode_model(
            run.quantized.tensors, checkpoint.config, checkpoint.vocab_size, run.config, checkpoint.tokenizer, codec
        )
    score = plain_score(decode_model(blob, device, dtype)[0], sections.evaluate, tokens)
    return fit_metrics(run) | {
        "bytes_model": len(blob),
        "quantized_bpb": score.bpb,
        "quantized_loss": score.loss,
        "quantize_seconds": clock.seconds("quantize"),
        "compress_seconds": clock.seconds("compress"),
    }


def plain_score(model: GPT, config: EvaluateConfig, tokens: Tokens) -> Score:
    """Score in windows that do not overlap, on the first `subset_targets` or on all; InputError for more than all."""
    end = len(tokens.val) if config.subset_targets is None else config.subset_targets + 1
    if end > len(tokens.val):
        raise InputError(
            f"`evaluate.subset_targets` is {config.subset_targets}, there are only {len(tokens.val) - 1} "
            "targets: lower it"
        )
    val = tokens.val[:end]
    losses = token_losses(model, val, windows_for(val, config, config.seq_len), config.batch_tokens)
    return summarize(losses, tokens.val_bytes[1:end])


def _line(report: Report) -> str:
    rate = report.tokens / max(report.seconds, 1e-9)
    return f"step {report.step:,} ({report.fraction:.0%})  loss {report.loss:.4f}  {rate:,.0f} tokens/s"
