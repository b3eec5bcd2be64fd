"""Results of a sweep as tables, as one JSON file, and as pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pgolf import artifacts
from pgolf.sweep.effects import Effect, differences, factorial_effects, mean, seed_spread
from pgolf.sweep.grid import BASE, Grid
from pgolf.sweep.plots import Point, effects_picture, frontier_picture
from pgolf.sweep.rows import AFTER_TRAINING, Result

COLUMNS = ("row", "seeds", "BPB", "spread", "tokens/s", "GB", "parameters")
PACKED_COLUMNS = ("BPB quantized", "bytes")
EFFECT_COLUMNS = ("effect", "BPB", "standard error", "")


def score_name(results: Sequence[Result]) -> str:
    """What the sweep is judged by: the score of the shipped weights where rows are packed."""
    return "quantized_bpb" if results[0].row.packed else "bpb"


def scores(results: Iterable[Result], metric: str) -> dict[str, list[float]]:
    """Row name -> that metric of its finished seeds; empty lists for rows without any."""
    found: dict[str, list[float]] = {}
    for result in results:
        found.setdefault(result.row.cell.name, []).extend([] if result.error else [result.metrics[metric]])
    return found


def effects(grid: Grid, results: Sequence[Result]) -> list[Effect]:
    """Of a factorial, or the differences to the row `base`; none where rows are explicit and none has that name."""
    by_name = scores(results, score_name(results))
    if grid.factors:
        levels = {result.row.cell.name: tuple(result.row.cell.levels.values()) for result in results}
        return factorial_effects(
            {factor: list(found) for factor, found in grid.factors.items()},
            {levels[name]: found for name, found in by_name.items()},
        )
    return differences(BASE, by_name) if BASE in by_name else []


def rows_table(results: Sequence[Result]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Columns and a line per row, means over its finished seeds."""
    packed = results[0].row.packed
    lines: list[tuple[Any, ...]] = []
    for name in scores(results, "bpb"):
        done = [result.metrics for result in results if result.row.cell.name == name and not result.error]
        if not done:
            lines.append((name, 0, *["-"] * (len(COLUMNS) - 2 + len(PACKED_COLUMNS) * packed)))
            continue
        spread = seed_spread([[metrics["bpb"] for metrics in done]])
        line = (
            name,
            len(done),
            f"{_mean(done, 'bpb'):.4f}",
            "-" if spread is None else f"{spread:.4f}",
            round(_mean(done, "tokens_per_second")),
            f"{_mean(done, 'peak_memory_bytes') / 1e9:.1f}",
            done[0]["parameters"],
        )
        more = (f"{_mean(done, 'quantized_bpb'):.4f}", round(_mean(done, "bytes_model"))) if packed else ()
        lines.append((*line, *more))
    return (*COLUMNS, *PACKED_COLUMNS) if packed else COLUMNS, lines


def effects_table(found: Sequence[Effect]) -> list[tuple[str, str, str, str]]:
    """A line per effect, for `EFFECT_COLUMNS`."""
    return [
        (
            effect.name,
            f"{effect.value:+.4f}",
            "-" if effect.error is None else f"{effect.error:.4f}",
            "within noise" if effect.within_noise else "",
        )
        for effect in found
    ]


def write_summary(folder: Path, grid: Grid, results: Sequence[Result], found: Sequence[Effect]) -> list[Path]:
    """`results.json` and the pictures; returns what was written."""
    metric, path = score_name(results), folder / "results.json"
    rows = [
        {
            "name": result.row.cell.name,
            "seed": result.row.sections.train.seed,
            "levels": dict(result.row.cell.levels),
            "values": dict(result.row.cell.values),
            "key": result.row.key,
            "metrics": dict(result.metrics),
            "error": result.error,
        }
        for result in results
    ]
    answers = [{**effect._asdict(), "within_noise": effect.within_noise} for effect in found]
    spread = seed_spread(list(scores(results, metric).values()))
    artifacts.write_json(path, {"grid": grid.name, "score": metric, "spread": spread, "rows": rows, "effects": answers})
    written = [path]
    title = f"{grid.name} ({_steps(results)} steps)"
    if found:
        written += effects_picture(folder / "effects", found, f"Effects of switches in {title}")
    if curves := frontier(grid, results):
        cap = results[0].row.sections.verify_size.cap_bytes
        written += frontier_picture(folder / "frontier", curves, cap, f"Size against score in {title}")
    return written


def frontier(grid: Grid, results: Sequence[Result]) -> dict[str, list[Point]]:
    """The packed rows of each training, under the name of what it varies; empty where nothing was packed."""
    curves: dict[str, list[Point]] = {}
    for result in results:
        if result.row.packed and not result.error:
            point = Point(result.metrics["bytes_model"], result.metrics["quantized_bpb"])
            curves.setdefault(_training_name(grid, result), []).append(point)
    return curves


def _steps(results: Sequence[Result]) -> str:
    """Steps of a row, or of the shortest and the longest."""
    steps = {result.row.sections.train.steps or 0 for result in results}
    return " to ".join(f"{count:,}" for count in sorted({min(steps), max(steps)}))


def _training_name(grid: Grid, result: Result) -> str:
    """The levels that the training depends on; the row's name where there are none."""
    named = [
        f"{factor}={level}"
        for factor, level in result.row.cell.levels.items()
        if any(key.split(".")[0] not in AFTER_TRAINING for values in grid.factors[factor].values() for key in values)
    ]
    name = " ".join(named) or result.row.cell.name
    return name if result.row.cell.seed is None else f"{name} @{result.row.cell.seed}"


def _mean(metrics: Sequence[Any], key: str) -> float:
    return mean([each[key] for each in metrics])
