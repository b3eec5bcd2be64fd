"""`pgolf bench train`: the training step of params.yaml, compiled and beside it eager."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import console, table

SHOWN = 30
"""Kernels listed."""
NAME = 60
"""Characters of a kernel's name that are shown."""


def bench_train(
    steps: Annotated[int, typer.Option(help="Counted steps in each phase.", min=1)] = 20,
    eager: Annotated[bool, typer.Option(help="Also without torch.compile.")] = True,
    params: Annotated[Path, typer.Option(help="Parameter file.")] = paths.PARAMS,
) -> None:
    """Tokens per second, MFU, memory and the kernels of a training step, on the tokens that are there."""
    from pgolf.bench.train import Measured, matmul_rate, measure_training
    from pgolf.data.tokens import open_tokens
    from pgolf.device import hardware_name, pick_device
    from pgolf.sections import load_sections

    sections = load_sections(params)
    tokens = open_tokens(paths.TOKENS, None)
    device, dtype = pick_device()
    peak = matmul_rate(device)

    def measure(compiled: bool) -> Measured:
        config = replace(sections.train, compile=compiled)
        return measure_training(sections.model, config, tokens.vocab_size, tokens.train, device, dtype, steps)

    compiles = device.type == "cuda" and sections.train.compile
    ways = {"compiled" if compiles else "eager": measure(compiles)}
    if compiles and eager:
        ways["eager"] = measure(False)
    rows = [
        (
            way,
            "on" if phase.looped else "off",
            f"{phase.milliseconds:.1f}",
            round(phase.tokens_per_second),
            f"{100 * phase.flops / peak:.1f} %",
            f"{phase.peak_bytes / 1e9:.1f}",
        )
        for way, measured in ways.items()
        for phase in measured.phases
    ]
    columns = ("step", "recurrence", "ms", "tokens/s", "MFU", "peak GB")
    table(f"training, {sections.train.batch_tokens:,} tokens a step, {hardware_name(device)}", columns, rows)
    first, measured = next(iter(ways.items()))
    console.print(
        f"{first}: first pass of every graph {measured.compile_seconds:.1f} s; "
        f"matrix product {peak / 1e12:,.2f} TFLOP/s"
    )
    shown = [
        (kernel.name[:NAME], f"{kernel.calls:g}", f"{kernel.milliseconds:.2f}", f"{100 * kernel.share:.1f} %")
        for kernel in measured.kernels[:SHOWN]
    ]
    table("where the last kind of step goes", ("kernel", "calls", "ms", "share"), shown)
