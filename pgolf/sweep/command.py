"""The command line of sweeps; what they need is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import console, progress, table
from pgolf.errors import InputError


def sweep_train(
    grid: Annotated[Path, typer.Argument(help="A grid file: grids/ holds some.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default scratch/sweeps/GRID).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings side by side (default: one per GPU, one on a CPU).")
    ] = None,
    params: Annotated[Path, typer.Option(help="Parameter file below the grid's base.")] = paths.PARAMS,
) -> None:
    """Train every row of a grid and say what its switches do; finished rows stay, exit 1 when one fails."""
    import os

    import torch

    from pgolf.data.tokens import open_tokens
    from pgolf.sweep.grid import read_grid
    from pgolf.sweep.pool import places, run_all
    from pgolf.sweep.rows import plan_rows, read_results, to_run
    from pgolf.sweep.summary import EFFECT_COLUMNS, effects, effects_table, rows_table, write_summary

    declared, tokens = read_grid(grid), open_tokens(paths.TOKENS, paths.TOKENIZER)
    rows = plan_rows(declared, params, tokens)
    environments = places(workers, torch.cuda.device_count(), os.environ, os.cpu_count() or 1)
    folder = out or paths.SCRATCH / "sweeps" / declared.name
    waiting = to_run(folder, rows)
    console.print(f"sweep: {len(rows)} rows, {sum(map(len, waiting.values()))} to run, in {folder}", soft_wrap=True)
    with progress("sweep") as show:
        run_all(folder, waiting, environments, show)
    results = read_results(folder, rows)
    table(declared.name, *rows_table(results))
    found = []
    try:
        found = effects(declared, results)
    except InputError as error:
        console.print(str(error), soft_wrap=True, markup=False)
    if found:
        table("effects", EFFECT_COLUMNS, effects_table(found))
    for path in write_summary(folder, declared, results, found):
        console.print(str(path), soft_wrap=True, markup=False)
    failed = [result for result in results if result.error]
    for result in failed:
        console.print(f"failed: {result.row.cell.label}: {result.error}", soft_wrap=True, markup=False)
    if failed:
        raise typer.Exit(1)
