"""The Pareto front of a sweep: rows that no other row beats in both bytes and bits per byte."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pgolf.artifacts import read_json
from pgolf.errors import InputError
from pgolf.report import plots


class Point(NamedTuple):
    """One row of a sweep."""

    label: str
    bytes: float
    """Of the packed model; a mean where the row has several seeds."""
    bpb: float
    """Of the shipped weights."""


def read_points(path: Path) -> list[Point]:
    """The packed rows of a sweep's `results.json`, means over the seeds of a row; InputError where there are none."""
    found = read_json(path, "sweep train")
    rows = found.get("rows", []) if isinstance(found, Mapping) else []
    points = points_of(rows)
    if not points:
        raise InputError(f"{path} has no rows with bytes: a front needs a sweep that packs its rows (see grids/)")
    return points


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Points of rows with `name` and `metrics`; rows without `bytes_model` and `quantized_bpb` there are left out."""
    grouped: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        metrics = row.get("metrics") or {}
        if {"bytes_model", "quantized_bpb"} <= set(metrics):
            grouped.setdefault(row["name"], []).append((metrics["bytes_model"], metrics["quantized_bpb"]))
    return [
        Point(name, sum(size for size, _ in seeds) / len(seeds), sum(bpb for _, bpb in seeds) / len(seeds))
        for name, seeds in grouped.items()
    ]


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points that no other one matches or beats in both, smallest first; of equal points the first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda each: (each.bytes, each.bpb)):
        if not front or point.bpb < front[-1].bpb:
            front.append(point)
    return front


def sweep_front(points: Sequence[Point], cap: int) -> Figure:
    """Every row as a point, the front as a line with its names; the cap where it is near."""
    front = pareto_front(points)
    figure, (axes,) = plots.figure(4.6)
    beaten = [point for point in points if point not in front]
    axes.plot([p.bytes / 1e6 for p in beaten], [p.bpb for p in beaten], "o", color=plots.GREY, fillstyle="none",
              label="beaten rows")  # fmt: skip
    axes.plot([p.bytes / 1e6 for p in front], [p.bpb for p in front], "o-", color=plots.BLUE, label="Pareto front")
    for number, point in enumerate(front, 1):
        axes.annotate(str(number), (point.bytes / 1e6, point.bpb), (-5, -12), textcoords="offset points", ha="right")
    axes.margins(x=0.06, y=0.14)
    plots.size_against_score(axes, cap, max(point.bytes for point in points))
    plots.title(axes, "Rows of the sweep: size against score")
    plots.legend_below(figure, axes)
    return figure
