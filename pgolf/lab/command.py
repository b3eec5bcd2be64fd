"""The commands of the laboratory; what they need is imported when they run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgolf import paths
from pgolf.console import console, progress, table
from pgolf.errors import InputError

if TYPE_CHECKING:
    from pgolf.sweep.grid import Grid

CALIBRATION_SEED = "calibrate.seed"
"""What the `seeds` of a grid of schemes are."""
MOST_WORKERS = 4
"""Processes that encode, unless told otherwise: each loads torch and holds a quantized model."""


def sweep_quantize(
    grid: Annotated[Path, typer.Argument(help="A grid file of `calibrate`, `quantize` and `compress` keys.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results (default scratch/schemes/GRID).")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that encode, beside the rest (default: cores, at most 4).")
    ] = None,
    materialise: Annotated[
        str | None, typer.Option(help="Write this row's values into the parameters instead of running the grid.")
    ] = None,
    in_turn: Annotated[
        bool, typer.Option(help="Hessians of each block anew, through the blocks quantized before it.")
    ] = False,
    params: Annotated[Path, typer.Option(help="Parameter file below the grid's base.")] = paths.PARAMS,
) -> None:
    """Quantize one checkpoint by every scheme of a grid: bytes against bits per byte; finished rows stay."""
    from pgolf.sweep.grid import read_grid

    declared = read_grid(grid, CALIBRATION_SEED)
    if materialise is not None:
        _materialise(declared, materialise, params)
        return
    import os

    from pgolf.artifacts import write_json
    from pgolf.lab.encoding import encoders
    from pgolf.lab.schemes import Results, plan_schemes, reference, run_schemes
    from pgolf.lab.workbench import open_workbench
    from pgolf.report import plots
    from pgolf.report.front import points_of, sweep_front
    from pgolf.rules import load_rules

    bench = open_workbench()
    rows = plan_schemes(declared, params, bench, in_turn)
    folder = out or paths.SCRATCH / "schemes" / declared.name
    before = reference(rows[0], bench, folder)
    with progress("sweep") as show, encoders(workers or min(MOST_WORKERS, os.cpu_count() or 1)) as pool:

        def report(results: Results) -> None:
            write_json(folder / "results.json", {"grid": declared.name, **before, "rows": results})
            show.count("rows")(len(results), len(rows))

        results = run_schemes(rows, bench, folder, pool, report)
    table(f"{declared.name}: {before['prequant_bpb']:.5f} BPB before quantization", *_columns(results, before))
    if points := points_of(results):
        plots.save(sweep_front(points, load_rules().artifact.value), folder / "front.png")
    console.print(str(folder / "results.json"), soft_wrap=True, markup=False)
    if failed := [row for row in results if row["error"]]:
        for row in failed:
            console.print(f"failed: {_label(row)}: {row['error']}", soft_wrap=True, markup=False)
        raise typer.Exit(1)


def diagnose(
    beside: Annotated[
        Path | None, typer.Option(help="Codes of another run: its folder, or its quantized.safetensors.")
    ] = None,
    targets: Annotated[
        int, typer.Option(min=0, help="Validation targets for the shares of the loss, a pass per matrix; 0: none.")
    ] = 65_536,
    out: Annotated[Path, typer.Option(help="Folder of the table and the pictures.")] = paths.SCRATCH / "diagnosis",
    params: Annotated[Path, typer.Option(help="Parameter file, for the windows.")] = paths.PARAMS,
) -> None:
    """What the scheme of the last `quantize` did to each matrix: size, error, share of the loss, outliers."""
    from dataclasses import replace

    from pgolf.artifacts import write_json
    from pgolf.evaluate.config import EvaluateConfig
    from pgolf.lab.diagnosis import by_role
    from pgolf.lab.diagnosis import diagnose as look
    from pgolf.lab.pictures import code_distributions, loss_shares
    from pgolf.lab.workbench import open_workbench, quantized_codes, recorded_scheme
    from pgolf.params import section
    from pgolf.report import plots

    bench = open_workbench()
    scheme = recorded_scheme(bench.checkpoint)
    windows = replace(
        section(params, "evaluate", EvaluateConfig), subset_targets=min(targets, len(bench.tokens.val) - 1) or None
    )
    runs = {"this run": {}} if beside is None else {"this run": {}, str(beside): by_role(quantized_codes(beside))}
    with progress("diagnose") as show:
        found = look(bench, scheme, windows if targets else None, show)
    runs["this run"] = by_role(found.codes)
    lines = [each.flat() for each in found.matrices]
    write_json(out / "matrices.json", {"rise": found.rise, "targets": targets, "matrices": lines})
    plots.save(code_distributions(runs), out / "codes.png")
    if targets:
        plots.save(loss_shares(found.matrices), out / "shares.png")
    said = "" if found.rise is None else f": {found.rise:+.5f} nats per token on {windows.subset_targets:,} targets"
    table(f"matrices{said}", *_matrices(lines))
    console.print(str(out), soft_wrap=True, markup=False)


def _matrices(lines: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Largest share of the loss first, else in the order of the model."""
    ordered = sorted(lines, key=lambda line: -(line["share"] or 0.0))
    shown = [
        (line["name"].removesuffix(".weight"), line["bits"], f"{line['entropy']:.3f}", f"{line['relative_error']:.2e}",
         "-" if line["nats"] is None else f"{line['nats']:.2e}",
         "-" if line["share"] is None else f"{100 * line['share']:.1f} %",
         f"{line['largest']:.1f}", f"{line['kurtosis']:.2f}", line["clipped"], line["zero_rows"])
        for line in ordered
    ]  # fmt: skip
    columns = ("matrix", "bits", "entropy", "relative error", "predicted nats", "share", "max / std", "kurtosis",
               "clipped", "zero rows")  # fmt: skip
    return columns, shown


def _columns(results: list[dict[str, Any]], before: Any) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The rows by size, beside the mean of `base` where there is one; a star marks those on the Pareto front."""
    from pgolf.report.front import pareto_front, points_of

    points = points_of(results)
    front, means = {point.label for point in pareto_front(points)}, {point.label: point for point in points}
    base, full = means.get("base"), before["prequant_bpb"]
    done = sorted((row for row in results if not row["error"]), key=lambda row: row["metrics"]["bytes_model"])
    lines = []
    for row in done:
        found = row["metrics"]
        size, gap = found["bytes_model"], found["quantized_bpb"] - full
        times = (f"{size / base.bytes:.4f}", f"{gap / (base.bpb - full):.3f}") if base else ("", "")
        seconds = [f"{found[f'{phase}_seconds']:.1f}" for phase in ("quantize", "compress", "evaluate")]
        lines.append(
            ("*" if row["name"] in front else "", _label(row), size, times[0], f"{found['quantized_bpb']:.5f}",
             f"{gap:+.5f}", times[1], f"{found['weighted_error']:.3e}", *seconds)
        )  # fmt: skip
    columns = ("front", "row", "bytes", "of base", "BPB", "gap", "of base", "weighted error", "s to quantize",
               "to encode", "to score")  # fmt: skip
    keep = [at for at, name in enumerate(columns) if base or name != "of base"]
    return tuple(columns[at] for at in keep), [tuple(line[at] for at in keep) for line in lines]


def _label(row: dict[str, Any]) -> str:
    """Name and seed."""
    return str(row["name"]) if row["seed"] is None else f"{row['name']} @{row['seed']}"


def _materialise(grid: "Grid", name: str, params: Path) -> None:
    """Set a row's values in the parameter file, and say how to run the row without that."""
    from pgolf.config import suggest
    from pgolf.presets import apply_preset
    from pgolf.sweep.grid import set_values

    cells = {cell.label: cell for cell in grid.cells()}
    if name not in cells:
        raise InputError(f"grid `{grid.name}` has no row `{name}`{suggest(name, cells)}")
    values = grid.values(cells[name])
    apply_preset(params, *grid.presets, also=set_values({}, values))
    options = " ".join(f"-S '{key}={json.dumps(value)}'" for key, value in values.items())
    said = f"{params} holds `{name}` now: dvc exp run. Or, without that:\ndvc exp run {options}"
    console.print(said, soft_wrap=True, markup=False)
