"""`pgolf bench train`: the training step of params.yaml, compiled and beside it eager."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgolf import paths
from pgolf.console import console, table

if TYPE_CHECKING:
    from pgolf.bench.train import Measured

SHOWN = 30
"""Kernels listed."""
NAME, COMMON = 60, "kernel_cutlass_kernel_"
"""Characters of a kernel's name that are shown, but for this beginning."""
BETWEEN = "between kernels"


def bench_train(
    steps: Annotated[int, typer.Option(help="Counted steps in each phase.", min=1)] = 20,
    eager: Annotated[bool, typer.Option(help="Also in eager torch, without kernels.")] = True,
    out: Annotated[Path, typer.Option(help="File for all figures.")] = Path("scratch/bench-train.json"),
    params: Annotated[Path, typer.Option(help="Parameter file.")] = paths.PARAMS,
) -> None:
    """Tokens per second, MFU, memory and the kernels of a training step, on the tokens that are there."""
    from pgolf import artifacts, ranks
    from pgolf.bench.agree import plain_twin
    from pgolf.bench.train import Measured, matmul_rate, measure_training
    from pgolf.data.tokens import open_tokens
    from pgolf.device import hardware_name, pick_device
    from pgolf.sections import load_sections
    from pgolf.train.config import TrainConfig

    sections = load_sections(params)
    tokens = open_tokens(paths.TOKENS, None)
    ranks.start()
    device, dtype = pick_device()
    peak = ranks.world() * matmul_rate(device)

    def measure(config: TrainConfig) -> Measured:
        return measure_training(sections.model, config, tokens.vocab_size, tokens.train, device, dtype, steps)

    compiles = device.type == "cuda" and sections.train.compile
    ways = {"compiled" if compiles else "eager": measure(sections.train)}
    if compiles and eager:
        ways["eager"] = measure(plain_twin(sections.train))
    hardware = hardware_name(device, ranks.world())
    _show_speeds(ways, peak, f"training, {sections.train.batch_tokens:,} tokens a step, {hardware}")
    _show_kernels(next(iter(ways.values())))
    figures = {
        way: {
            "compile_seconds": measured.compile_seconds,
            "phases": [phase._asdict() for phase in measured.phases],
            "kernels": [kernel._asdict() for kernel in measured.kernels],
        }
        for way, measured in ways.items()
    }
    artifacts.write_json(out, {"hardware": hardware, "matmul_flops": peak, "ways": figures})
    console.print(f"all kernels: {out}")


def _show_speeds(ways: "Mapping[str, Measured]", peak: float, title: str) -> None:
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
    table(title, ("step", "recurrence", "ms", "tokens/s", "MFU", "peak GB"), rows)
    first, measured = next(iter(ways.items()))
    console.print(
        f"{first}: making, compiling and warming up {measured.compile_seconds:.1f} s; "
        f"matrix product {peak / 1e12:,.2f} TFLOP/s"
    )


def _show_kernels(measured: "Measured") -> None:
    from pgolf.bench.parts import by_part

    parts = [
        (part.name, f"{part.calls:g}", f"{part.milliseconds:.1f}", f"{100 * part.share:.1f} %")
        for part in by_part(measured.kernels)
    ]
    idle = measured.phases[-1].milliseconds - sum(kernel.milliseconds for kernel in measured.kernels)
    parts.append((BETWEEN, "", f"{idle:.1f}", ""))
    table("the last kind of step by part", ("part", "kernels", "ms", "share"), parts)
    shown = [
        (
            kernel.name.removeprefix(COMMON)[:NAME],
            f"{kernel.calls:g}",
            f"{kernel.milliseconds:.2f}",
            f"{100 * kernel.share:.1f} %",
        )
        for kernel in measured.kernels[:SHOWN]
    ]
    table("where the last kind of step goes", ("kernel", "calls", "ms", "share"), shown)


SPREAD = "spread of seeds"


def bench_agree(
    steps: Annotated[int, typer.Option(help="Steps of training.", min=10)] = 200,
    seeds: Annotated[
        int, typer.Option(help="Seeds whose spread is the yardstick, the configured one counted.", min=2)
    ] = 2,
    out: Annotated[Path, typer.Option(help="Folder for agreement.json and agreement.png.")] = Path("scratch/agreement"),
    params: Annotated[Path, typer.Option(help="Parameter file.")] = paths.PARAMS,
) -> None:
    """The losses of training as configured beside those of eager torch and of other seeds, on the tokens there are."""
    from pgolf.bench.agree import EVERY, agreement, save, training_losses, ways
    from pgolf.data.tokens import open_tokens
    from pgolf.device import pick_device
    from pgolf.sections import load_sections

    sections = load_sections(params)
    tokens = open_tokens(paths.TOKENS, None)
    device, dtype = pick_device()
    losses = {}
    for way, config in ways(sections.train, steps, seeds).items():
        losses[way] = training_losses(sections.model, config, tokens.vocab_size, tokens.train, device, dtype)
        console.print(f"{way}: loss {losses[way][-1]:.4f} at step {steps}")
    found = agreement(losses)
    rows = [
        (name, f"{sum(gaps) / len(gaps):.5f}", f"{max(gaps):.5f}", "" if name == SPREAD else found.outside(name))
        for name, gaps in (*found.gaps.items(), (SPREAD, found.spread))
    ]
    columns = ("run", "mean", "largest", "outside the spread")
    table(f"nats from the run as configured, means of {EVERY} steps, {len(found.spread)} of them", columns, rows)
    save(losses, out)
    console.print(f"{out}/agreement.json, {out}/agreement.png")
