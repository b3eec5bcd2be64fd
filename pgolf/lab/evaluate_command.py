"""`pgolf sweep evaluate`: ways of test-time training on one artifact, gain against seconds."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import console, progress, table


def sweep_evaluate(
    grid: Annotated[Path, typer.Argument(help="A grid file of `evaluate` keys: grids/ holds one.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default scratch/evaluations/GRID).")] = None,
    params: Annotated[Path, typer.Option(help="Parameter file below the grid's base.")] = paths.PARAMS,
) -> None:
    """Score one artifact in several ways, one after another: what each gains over plain windows, and its seconds."""
    from pgolf import artifacts
    from pgolf.data.tokens import open_tokens
    from pgolf.device import hardware_name, pick_device
    from pgolf.lab.evaluations import Text, gains_over_seconds, plan_evaluations, run_evaluations
    from pgolf.quant.artifact import decode_model
    from pgolf.report import plots
    from pgolf.sweep.grid import read_grid

    declared = read_grid(grid)
    rows, folder = plan_evaluations(declared, params), out or paths.SCRATCH / "evaluations" / declared.name
    device, dtype = pick_device()
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    model, header = decode_model(artifacts.require(paths.ARTIFACT, "compress").read_bytes(), device, dtype)
    tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
    with progress("sweep") as show:
        text = Text(tokens.val, tokens.val_bytes)
        results = run_evaluations(
            model, text, rows, folder / "results.json", lambda phase, done, total: show.count(phase)(done, total)
        )
    measured = [row for row in results if not row["error"]]
    columns = ("row", "seconds", "BPB", "gain", "targets/s")
    lines = [
        (row["name"], f"{row['seconds']:.1f}", f"{row['bpb']:.5f}", f"{row['gain_bpb']:.5f}",
         round(row["targets_per_second"]))
        for row in measured
    ]  # fmt: skip
    table(f"{declared.name}, {hardware_name(device)}", columns, lines)
    if measured:
        plots.save(gains_over_seconds(results, declared.name), folder / "gains.png")
    console.print(str(folder / "results.json"), soft_wrap=True, markup=False)
    if failed := [row for row in results if row["error"]]:
        for row in failed:
            console.print(f"failed: {row['name']}: {row['error']}", soft_wrap=True, markup=False)
        raise typer.Exit(1)
