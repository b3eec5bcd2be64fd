"""`pgolf report`: the page about a run; what it needs is imported when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgolf.console import console, progress
from pgolf.errors import InputError

if TYPE_CHECKING:
    from pgolf.report.material import Material

LABEL = 28
"""Characters of a name in a legend: the end of longer ones."""


def report(
    run: Annotated[str, typer.Argument(help="Folder, revision, DVC experiment, or `workspace`.")] = "workspace",
    beside: Annotated[str | None, typer.Option(help="A second run, to be shown side by side.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    document: Annotated[
        list[int] | None, typer.Option(help="Validation document to show as text, from 0; repeatable.", min=0)
    ] = None,
    sweep: Annotated[Path | None, typer.Option(help="`results.json` of a sweep, for its Pareto front.")] = None,
) -> None:
    """Write one self-contained page with figures, tables, pictures and the text of some documents, token by token."""
    from pgolf.artifacts import write_bytes
    from pgolf.report.front import read_points
    from pgolf.report.page import page, sweep_blocks
    from pgolf.rules import load_rules

    names = [run] if beside is None else [run, beside]
    with progress("report") as show:
        show("drawing")
        blocks = sweep_blocks(read_points(sweep), load_rules().artifact.value) if sweep is not None else ()
        text = page(_materials(names), document or (), blocks)
        write_bytes(out, text.encode())
    console.print(f"{out}: {len(text) / 1e6:.1f} MB, opens in any browser", soft_wrap=True, markup=False)


def _materials(names: list[str]) -> dict[str, "Material"]:
    """The runs by what legends call them."""
    from pgolf.report.material import Material
    from pgolf.runs import load_run

    found = {}
    for name in names:
        loaded, folder = load_run(name), Path(name) if Path(name).is_dir() else Path()
        val = loaded.params.get("data.val")
        found[_short(name)] = Material(loaded, None if val is None else folder / val)
    if len(found) < len(names):
        raise InputError(f"`{names[0]}` beside `{names[1]}` shows one run twice: name two runs")
    return found


def _short(name: str) -> str:
    return name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
