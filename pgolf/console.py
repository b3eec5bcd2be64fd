"""What a person sees: one live line, tables, one-line errors. Nothing here can affect a byte of an artifact.

In a terminal progress is one live line; elsewhere (CI, a log file) it is a plain line every few seconds. Of several
processes (torchrun, `pgolf.launch`) the first alone speaks, but for an error that it does not share.
Exit codes: 0 done, 1 a gate failed, 2 bad input or interrupted, 3 a bug of ours.
"""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from rich.traceback import Traceback

from pgolf.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")
WORLD, RANK = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
console = Console(stderr=True, highlight=False, quiet=RANK > 0)
OTHERS_FIRST = 3.0
"""Seconds that one of several processes keeps an error to itself; it is ended meanwhile where another's was first."""
LINE = 160
"""Characters that a table may take at least, outside a terminal."""
PLAIN_INTERVAL = 10.0
"""Seconds between progress lines outside a terminal."""


class Progress:
    """A line that says how far a stage is; see `progress`."""

    def __init__(self, stage: str, live: Live | None) -> None:
        self.stage, self.live, self.shown = stage, live, time.monotonic()

    def __call__(self, text: str) -> None:
        """Show a new state."""
        line = f"{self.stage}: {text}"
        if self.live:
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self.shown >= PLAIN_INTERVAL:
            self.shown = time.monotonic()
            console.print(line, soft_wrap=True, markup=False)

    def count(self, what: str) -> Callable[[int, int], None]:
        """A callback (done, total) that shows `what`, with a percentage where the total is known (not 0)."""
        return lambda done, total: self(f"{what} {done:,}" + (f" of {total:,} ({done / total:.0%})" if total else ""))

    def gigabytes(self, what: str, done: int, total: int) -> None:
        """Show bytes done of all."""
        self(f"{what} {done / 1e9:,.2f} of {total / 1e9:,.2f} GB ({done / max(1, total):.0%})")


@contextlib.contextmanager
def progress(stage: str) -> Iterator[Progress]:
    """Show the progress of a stage and, when it is done, how long it took."""
    start = time.monotonic()
    if console.is_terminal:
        with Live(console=console, transient=True, refresh_per_second=4) as live:
            yield Progress(stage, live)
    else:
        yield Progress(stage, None)
    console.print(f"{stage}: done in {time.monotonic() - start:.1f} s", soft_wrap=True, markup=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers are right-aligned, whole numbers with thousands separators. No file is too narrow."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        numeric = rows and all(isinstance(row[index], int | float) or row[index] in ("", "-") for row in rows)
        grid.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        grid.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    wide = Console(file=console.file, width=max(LINE, console.width), highlight=False, quiet=console.quiet)
    (console if console.is_terminal else wide).print(grid)


def handled(command: Callable[P, T]) -> Callable[P, T]:
    """The command with its errors turned into one message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        previous = signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            try:
                _let_others_speak(error)
            except KeyboardInterrupt as interrupted:
                error = interrupted
            raise typer.Exit(_explain(error, command.__name__)) from None
        finally:
            signal.signal(signal.SIGTERM, previous)

    return run


def _let_others_speak(error: BaseException) -> None:
    """Of several processes, let the one speak that knows best: an error of another reaches this one as a lost link."""
    if WORLD > 1 and not isinstance(error, KeyboardInterrupt):
        time.sleep(OTHERS_FIRST * ((RANK > 0) + (not isinstance(error, InputError))))
        console.quiet = False


def _explain(error: BaseException, command: str) -> int:
    """Say what went wrong and what helps; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        text = "Outputs are written whole or not at all: nothing half-written is left. Run the same command again"
        resumes = "; it goes on from its last saved state." if command in ("train", "fetch") else "."
        _say(f"{command} was interrupted.", "bold red", text + resumes)
        return 2
    if isinstance(error, InputError):
        _say("error:", "bold red", str(error))
        return 2
    if isinstance(error, OSError) and error.errno is not None:
        _say("error:", "bold red", f"{error}: check the path, its rights and the free disk space")
        return 2
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
        remedy = "lower `train.micro_tokens`, `calibrate.rows` or `evaluate.batch_tokens`"
        _say("error:", "bold red", f"the GPU has too little memory: {remedy}")
        return 2
    console.print(Traceback.from_exception(type(error), error, error.__traceback__))
    _say("error:", "bold red", "this is a fault of pgolf, not of your input: please report it with the lines above")
    return 3


def stage_main(command: Callable[..., Any]) -> None:
    """Run one stage as a program (`python -m stages.NAME`)."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(handled(command))
    app(prog_name=f"python -m stages.{command.__name__}")


def _terminate(number: int, frame: FrameType | None) -> None:
    """A terminated stage cleans up like an interrupted one."""
    raise KeyboardInterrupt


def _say(label: str, style: str, text: str) -> None:
    """One line, `text` as it is: a path may look like markup."""
    console.print(Text.assemble((label, style), " ", text), soft_wrap=True)
