"""Pictures of a sweep, each as PNG and as SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from pgolf.report import plots
from pgolf.sweep.effects import Effect

MARKERS = "osD^vP*"


class Point(NamedTuple):
    """One packed row."""

    bytes: int
    bpb: float
    """Of the shipped weights."""


def effects_picture(path: Path, effects: Sequence[Effect], title: str) -> list[Path]:
    """Effects with two standard errors to each side, in the given order; those within noise are grey and hollow."""
    figure, (axes,) = plots.figure(0.32 * len(effects) + 1.4)
    for place, effect in enumerate(reversed(effects)):
        bar = None if effect.error is None else 2 * effect.error
        color, fill = (plots.GREY, "white") if effect.within_noise else (plots.BLUE, plots.BLUE)
        axes.errorbar(effect.value, place, xerr=bar, fmt="o", color=color, mfc=fill, capsize=3)
    axes.set_yticks(range(len(effects)), [effect.name for effect in reversed(effects)])
    axes.axvline(0, color=plots.GREY, linewidth=1)
    axes.set_xlabel("change in BPB, negative is better; bars: two standard errors")
    plots.title(axes, title)
    return _save(figure, path)


def frontier_picture(path: Path, curves: Mapping[str, Sequence[Point]], cap: int, title: str) -> list[Path]:
    """BPB of the shipped weights over bytes: a curve per training, a point per scheme, and the cap where it is near."""
    figure, (axes,) = plots.figure(4.6)
    colors = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY)
    for place, (name, points) in enumerate(curves.items()):
        ordered = sorted(points)
        look = f"{MARKERS[place % len(MARKERS)]}-"
        sizes, scores = [point.bytes / 1e6 for point in ordered], [point.bpb for point in ordered]
        axes.plot(sizes, scores, look, color=colors[place % len(colors)], label=name)
    plots.size_against_score(axes, cap, max(point.bytes for points in curves.values() for point in points))
    plots.title(axes, title)
    plots.legend_below(figure, axes)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> list[Path]:
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in written:
        plots.save(figure, file)
    return written
