"""Rows of a sweep: what each runs, the name its result goes by, and the result on disk.

A row's key is the digest of its parameters and tokens, so a finished row is found again by whatever grid asks for it in
the same folder. The code and the hardware are not part of it: results of another version belong in another folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgolf import artifacts
from pgolf.config import digest, to_dict
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokens import Tokens
from pgolf.errors import InputError
from pgolf.sections import Sections
from pgolf.sweep.grid import Cell, Grid

TOKENISATION = ("data.", "tokenize.")
AFTER_TRAINING = ("calibrate", "quantize", "compress")
"""Sections that a row depends on only where the grid varies one of them: it is then quantized and packed as well."""


class Row(NamedTuple):
    """One row, ready to run."""

    cell: Cell
    sections: Sections
    training: str
    """Key of its training: rows that differ only in what follows share one."""
    key: str
    packed: bool
    """Whether it goes on to quantization and the artifact."""


class Result(NamedTuple):
    """What a row came to."""

    row: Row
    metrics: Mapping[str, Any]
    """Flat; empty where it failed or did not run."""
    error: str
    """Empty for a finished row."""


def plan_rows(grid: Grid, params: Path, tokens: Tokens) -> list[Row]:
    """Check every row before the first one runs; InputError for what a sweep over trainings cannot vary."""
    packed = any(key.split(".")[0] in AFTER_TRAINING for key in _varied(grid))
    for key in (*_varied(grid), *grid.shared):
        if key.startswith(TOKENISATION):
            raise InputError(f"grid `{grid.name}` sets `{key}`: rows of a sweep share the tokens of `pgolf tokenize`")
    rows = []
    for cell, sections in grid.resolved(params):
        _check(cell, sections, tokens)
        rows.append(_row(cell, sections, packed, digest(tokens.manifest)))
    return rows


def _row(cell: Cell, sections: Sections, packed: bool, tokens: str) -> Row:
    resolved = to_dict(sections)
    scored = {name: resolved["evaluate"][name] for name in ("seq_len", "isolate_documents", "subset_targets")}
    training = {"model": resolved["model"], "train": resolved["train"], "evaluate": scored, "tokens": tokens}
    after = {name: resolved[name] for name in AFTER_TRAINING} if packed else {}
    return Row(cell, sections, digest(training)[:16], digest(training | after)[:16], packed)


def _varied(grid: Grid) -> list[str]:
    levels = [values for factor in grid.factors.values() for values in factor.values()]
    return [key for values in (*levels, *grid.rows.values()) for key in values]


def _check(cell: Cell, sections: Sections, tokens: Tokens) -> None:
    if sections.train.steps is None:
        raise InputError(
            f"row `{cell.label}` has a budget in seconds, which says nothing about a technique that changes the speed: "
            "set `train.steps`, and `train.seconds` to null, under `base.set`"
        )
    if sections.tokenize.vocab_size != tokens.vocab_size:
        raise InputError(
            f"row `{cell.label}` is for {sections.tokenize.vocab_size} pieces (`tokenize.vocab_size`), the tokens here "
            f"have {tokens.vocab_size}: run `pgolf preset use` with the grid's preset and `pgolf tokenize`"
        )
    if sections.tokenize.case_ops != (tokens.manifest["transform"] == CASEOPS):
        wanted = "with" if sections.tokenize.case_ops else "without"
        raise InputError(
            f"row `{cell.label}` is for tokens {wanted} case operators (`tokenize.case_ops`), those here are not: run "
            "`pgolf preset use` with the grid's preset and `pgolf tokenize`"
        )
    subset = sections.evaluate.subset_targets
    if subset is not None and subset >= len(tokens.val):
        raise InputError(f"`evaluate.subset_targets` is {subset}, there are {len(tokens.val) - 1} targets: lower it")


def to_run(folder: Path, rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows without a result or with an error, grouped by the training that they share; rows of one key run once."""
    groups: dict[str, dict[str, Row]] = {}
    for result in read_results(folder, list(rows)):
        if result.error:
            groups.setdefault(result.row.training, {})[result.row.key] = result.row
    return {training: list(group.values()) for training, group in groups.items()}


def result_path(folder: Path, key: str) -> Path:
    """Where the result of a row lies."""
    return folder / "rows" / f"{key}.json"


def finish(folder: Path, row: Row, metrics: Mapping[str, Any]) -> None:
    """Write the result of a finished row."""
    _write(folder, row, {"metrics": dict(metrics), "error": ""})


def fail(folder: Path, row: Row, error: str) -> None:
    """Record why a row has no result; the next run tries it again."""
    _write(folder, row, {"metrics": {}, "error": error})


def has_result(folder: Path, row: Row) -> bool:
    """Whether a row has finished or failed."""
    return result_path(folder, row.key).exists()


def _write(folder: Path, row: Row, outcome: Mapping[str, Any]) -> None:
    name = {"name": row.cell.name, "seed": row.sections.train.seed, "params": to_dict(row.sections)}
    artifacts.write_json(result_path(folder, row.key), {**name, **outcome})


def read_results(folder: Path, rows: Sequence[Row]) -> list[Result]:
    """The result of every row, in their order; one that has not run yet says so as its error."""
    results = []
    for row in rows:
        found: dict[str, Any] = {"metrics": {}, "error": "not run"}
        if has_result(folder, row):
            found = artifacts.read_json(result_path(folder, row.key), "sweep train")
        results.append(Result(row, found["metrics"], found["error"]))
    return results
