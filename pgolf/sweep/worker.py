"""One training of a sweep and the rows that share it, in a process of its own: `python -m pgolf.sweep.worker JOB`.

A process per training keeps peak memory apart, and what kills one kills no other. Nothing is written outside the
sweep's folder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pgolf import artifacts, paths
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.console import Progress, progress
from pgolf.data.tokens import Tokens, open_tokens
from pgolf.sections import check_sections
from pgolf.sweep.grid import Cell
from pgolf.sweep.measure import Hessians, Metrics, measure_packed, measure_training
from pgolf.sweep.rows import Row, fail, finish


def write_job(path: Path, rows: Sequence[Row]) -> None:
    """What a worker needs to know of rows that share a training."""
    described = [
        {
            "name": row.cell.name,
            "seed": row.cell.seed,
            "params": to_dict(row.sections),
            "training": row.training,
            "key": row.key,
            "packed": row.packed,
        }
        for row in rows
    ]
    artifacts.write_json(path, described)


def read_job(path: Path) -> list[Row]:
    """The rows of a job; their cells keep name and seed."""
    return [
        Row(
            Cell(name=row["name"], values={}, seed=row["seed"]),
            check_sections(row["params"], path),
            row["training"],
            row["key"],
            row["packed"],
        )
        for row in artifacts.read_json(path, "sweep train")
    ]


def run_job(folder: Path, rows: Sequence[Row]) -> None:
    """Train once, then write the result of every row; an error is that of the rows that it concerns."""
    try:
        tokens = open_tokens(paths.TOKENS, None)
        with progress("row") as show:
            metrics = _trained(folder, rows[0], tokens, show)
    except Exception as error:
        for row in rows:
            fail(folder, row, _said(error))
        return
    hessians: Hessians = {}
    for row in rows:
        try:
            checkpoint = load_checkpoint(weights_path(folder, row)) if row.packed else None
            extra = measure_packed(checkpoint, row.sections, tokens, hessians) if checkpoint else {}
        except Exception as error:
            fail(folder, row, _said(error))
        else:
            finish(folder, row, metrics | extra)


def weights_path(folder: Path, row: Row) -> Path:
    """Where the weights of a training lie that rows go on from."""
    return folder / "weights" / f"{row.training}.safetensors"


def _trained(folder: Path, row: Row, tokens: Tokens, show: Progress) -> Metrics:
    """Metrics of the training; one whose weights were kept is not repeated."""
    weights = weights_path(folder, row)
    kept = weights.with_suffix(".json")
    if kept.exists() and weights.exists():
        metrics: Metrics = artifacts.read_json(kept, "sweep train")
        return metrics
    metrics, model = measure_training(row.sections, tokens, show)
    if row.packed:
        params = {"model": to_dict(row.sections.model), "train": to_dict(row.sections.train)}
        extra = {"vocab_size": tokens.vocab_size, "tokenizer": tokens.tokenizer_sha256}
        state = model.state_dict()
        artifacts.save(
            weights, state, schema="pgolf.checkpoint", stage="sweep train", params=params, inputs={}, extra=extra
        )
        artifacts.write_json(kept, metrics)
    return metrics


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def main() -> None:
    """Run the job whose file the command line names, in the folder of the sweep."""
    job = Path(sys.argv[1])
    run_job(job.parent.parent, read_job(job))


if __name__ == "__main__":
    main()
