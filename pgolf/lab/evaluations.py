"""A sweep over evaluations of one artifact: what each way of test-time training brings, and the seconds that it takes.

Rows run one after another, so that their seconds can be compared; each is written down when it is done. A row's gain
is the score in plain windows of the shortest `seq_len`, which is measured once, minus its own. Its seconds are those of
scoring and adapting, without decoding the artifact and without compiling.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from pgolf import artifacts
from pgolf.budget import Clock
from pgolf.device import synchronize
from pgolf.errors import InputError
from pgolf.evaluate.config import CacheConfig, EvaluateConfig
from pgolf.evaluate.run import evaluate, warm_up
from pgolf.model.gpt import GPT
from pgolf.report import plots
from pgolf.sweep.grid import Grid

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.GREY)
MARKERS = "os^Dv*"


class Text(NamedTuple):
    """What is scored: a stream [n] and the bytes charged to each of its tokens [n]."""

    tokens: NDArray[np.uint16]
    token_bytes: NDArray[np.integer]


def plan_evaluations(grid: Grid, params: Path) -> dict[str, EvaluateConfig]:
    """The settings of every row by its name; InputError for a row that sets anything else or has seeds."""
    for cell in grid.cells():
        if cell.seed is not None:
            raise InputError(f"grid `{grid.name}` lists seeds: rows of a sweep of evaluations have the same weights")
        for key in cell.values:
            if not key.startswith("evaluate."):
                raise InputError(
                    f"row `{cell.name}` of grid `{grid.name}` sets `{key}`: rows of a sweep of evaluations share the "
                    "artifact and differ in `evaluate.` only"
                )
    return {cell.name: sections.evaluate for cell, sections in grid.resolved(params)}


def run_evaluations(
    model: GPT,
    text: Text,
    rows: Mapping[str, EvaluateConfig],
    file: Path,
    report: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> list[dict[str, Any]]:
    """Measure every row; `file` holds those that are done.

    An InputError of a row becomes its `error`.
    """
    shortest = min(rows.values(), key=lambda config: config.seq_len)  # the others may see further than the training did
    plain, results = _plain(model, text, shortest), list[dict[str, Any]]()
    for name, config in rows.items():
        try:
            results.append({"name": name, "error": "", **_measure(model, text, config, plain, report)})
        except InputError as error:
            results.append({"name": name, "error": str(error)})
        artifacts.write_json(file, {"plain_bpb": plain, "rows": results})
    return results


def _plain(model: GPT, text: Text, like: EvaluateConfig) -> float:
    windows = replace(like, ttt="none", cache=CacheConfig(), stride=like.seq_len)
    evaluate(model, *text, windows)  # compiles attention
    return evaluate(model, *text, windows).score.bpb


def _measure(
    model: GPT, text: Text, config: EvaluateConfig, plain: float, report: Callable[[str, int, int], None]
) -> dict[str, Any]:
    clock, device = Clock(), model.tok_emb.weight.device
    warm_up(model, config)
    with clock.phase("evaluate"):
        score = evaluate(model, *text, config, report).score
        synchronize(device)
    seconds = clock.seconds("evaluate")
    gain, rate = plain - score.bpb, score.tokens / seconds
    return {"seconds": seconds, "bpb": score.bpb, "gain_bpb": gain, "targets_per_second": rate}


def gains_over_seconds(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Gain over seconds (log scale), a point per row; rows whose names are equal before a comma are joined."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if not row["error"]:
            series.setdefault(row["name"].partition(",")[0], []).append(row)
    figure, (axes,) = plots.figure(4.6)
    for (name, points), color, marker in zip(series.items(), cycle(COLORS), cycle(MARKERS), strict=False):
        ordered = sorted(points, key=lambda row: float(row["seconds"]))
        found = [row["seconds"] for row in ordered], [row["gain_bpb"] for row in ordered]
        axes.plot(*found, f"{marker}-", color=color, label=name)
        for index, (row, x, y) in enumerate(zip(ordered, *found, strict=True)):
            label = row["name"].partition(",")[2].strip()
            offset, side = ((6, -10), "left") if index % 2 else ((-6, 4), "right")  # neighbours lie close
            axes.annotate(label, (x, y), offset, textcoords="offset points", ha=side, fontsize=8, color=color)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.16, y=0.12)
    axes.set_xlabel("seconds of scoring and adapting")
    axes.set_ylabel("gain in bits per byte over plain windows")
    plots.title(axes, title)
    plots.legend_below(figure, axes)
    return figure
