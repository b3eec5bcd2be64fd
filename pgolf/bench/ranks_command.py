"""`pgolf bench ranks`: how training speed grows with the GPUs of this machine."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgolf import paths
from pgolf.console import console, table
from pgolf.errors import InputError

if TYPE_CHECKING:
    from pgolf.bench.ranks import Speed


def bench_ranks(
    steps: Annotated[int, typer.Option(help="Counted steps of every measurement.", min=1)] = 20,
    number: Annotated[
        int | None, typer.Option("--ranks", help="Most processes; without, one for each visible GPU.", min=2)
    ] = None,
    out: Annotated[Path, typer.Option(help="File for the figures.")] = Path("scratch/ranks.json"),
    params: Annotated[Path, typer.Option(help="Parameter file.")] = paths.PARAMS,
) -> None:
    """Tokens per second of 1, 2, 4, ... GPUs, and how much of their communication is hidden, on the tokens there are.

    Starts one process for each GPU and compiles once. Every number of them trains with the batch of params.yaml
    (strong scaling) and with that many batches (weak scaling).
    """
    if "RANK" not in os.environ:  # torchrun, or these lines, have started several
        import torch

        from pgolf.launch import run_together

        count = processes(number, torch.cuda.device_count())
        own = ["bench", "ranks", "--steps", str(steps), "--out", str(out), "--params", str(params)]
        if code := run_together([sys.executable, "-c", "from pgolf.cli import main; main()", *own], count):
            raise typer.Exit(code)
        return
    if number is not None:
        raise InputError("--ranks starts processes, and torchrun has started them already: leave it out")
    from pgolf import artifacts
    from pgolf.bench.ranks import measure_ranks, meet
    from pgolf.data.tokens import open_tokens
    from pgolf.device import hardware_name, pick_device
    from pgolf.sections import load_sections

    sections = load_sections(params)
    tokens = open_tokens(paths.TOKENS, None)
    meeting = meet()
    device, dtype = pick_device()

    def say(text: str) -> None:
        console.print(f"bench ranks: {text}", soft_wrap=True, markup=False)

    speeds = measure_ranks(
        sections.model, sections.train, tokens.vocab_size, tokens.train, device, dtype, steps, meeting, say
    )
    if meeting.rank == 0:
        found = figures(speeds)
        hardware = hardware_name(device, meeting.size)
        configured = {key: getattr(sections.train, key) for key in ("kernels", "matmul", "graphs")}
        artifacts.write_json(out, {"hardware": hardware, "steps": steps, "configured": configured, "rows": found})
        table(f"training on several GPUs, {hardware}", COLUMNS, [row(each) for each in found])
        console.print(f"factor: tokens/s over those of one; waiting: for the slowest of them. {out}", soft_wrap=True)
    meeting.leave()


def processes(asked: int | None, gpus: int) -> int:
    """How many to start; InputError where that is no comparison or more than there are GPUs."""
    here = f"{gpus} GPU{'' if gpus == 1 else 's'} can be seen here"
    if asked is None and gpus < 2:
        raise InputError(
            f"{here} and scaling takes two: use a machine with more, or let CUDA_VISIBLE_DEVICES name more; "
            "`CUDA_VISIBLE_DEVICES= pgolf bench ranks --ranks 2` tries it on the CPU"
        )
    if asked is not None and 0 < gpus < asked:
        raise InputError(f"--ranks is {asked}, but {here}: ask for {gpus} at most, or leave it out")
    return gpus if asked is None else asked


COLUMNS = (
    "ranks", "batch", "recurrence", "ms", "tokens/s", "factor", "communication ms", "hidden", "waiting ms",
)  # fmt: skip


def figures(speeds: "list[Speed]") -> list[dict[str, Any]]:
    """The rows of the table as they stand in the file."""
    alone = {speed.looped: speed.tokens_per_second for speed in speeds if speed.ranks == 1}
    return [
        {
            "ranks": speed.ranks,
            "batch_tokens": speed.batch_tokens,
            "recurrence": speed.looped,
            "milliseconds": speed.milliseconds,
            "tokens_per_second": speed.tokens_per_second,
            "factor": speed.tokens_per_second / alone[speed.looped],
            "communication": None if speed.communication is None else speed.communication._asdict(),
        }
        for speed in speeds
    ]


def row(figures: dict[str, Any]) -> tuple[Any, ...]:
    """One line of the table."""
    talk = figures["communication"] or {}
    travel = talk.get("milliseconds")
    return (
        figures["ranks"],
        figures["batch_tokens"],
        "on" if figures["recurrence"] else "off",
        f"{figures['milliseconds']:.1f}",
        round(figures["tokens_per_second"]),
        f"{figures['factor']:.3f}",
        f"{travel:.2f}" if travel else "-",
        f"{100 * talk['hidden'] / travel:.0f} %" if travel else "-",
        f"{talk['waiting']:.2f}" if travel else "-",
    )
