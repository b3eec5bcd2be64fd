"""The command line of the audit; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import progress, table


def audit(
    path: Annotated[
        Path | None,
        typer.Argument(help="A submission folder (never run), an artifact or a preset; without it, the run here."),
    ] = None,
    base: Annotated[
        list[float] | None, typer.Option(help="Loss of one seed of the record to beat, nats per token; repeat it.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="The record to beat, by name: PR1855.")] = None,
    json: Annotated[Path, typer.Option(help="Where to write the findings.")] = paths.SCRATCH / "audit.json",
    params: Annotated[Path, typer.Option(help="Parameter file.")] = paths.PARAMS,
) -> None:
    """Judge a run by the rules: bytes, clocks, who saw which token when; exit 1 when a check fails."""
    from pgolf import artifacts
    from pgolf.audit.run import audit as judge
    from pgolf.rules import load_rules
    from pgolf.submit.leaderboard import record

    losses = [*(base or ()), *(record(against).losses().values() if against else ())]
    with progress("audit") as show:
        found = judge(path, params, load_rules(), losses, show)
    artifacts.write_json(json, found.to_json())
    title = f"audit of {found.subject}: {found.summary}; rules {found.rules}; all of it in {json}"
    table(title, ("verdict", "check", "evidence"), found.rows())
    if found.failed:
        raise typer.Exit(1)
