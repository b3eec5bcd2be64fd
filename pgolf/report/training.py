"""Pictures of what happened during training, from the trace of one run or of two."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pgolf.report import plots
from pgolf.report.plots import Label

Series = NDArray[np.floating]


class Curve(NamedTuple):
    """One run over time, a value per traced step."""

    seconds: Series
    """Of training."""
    loss: Series
    """Nats per token."""
    rate: Series
    """Learning-rate multiplier."""
    loop_at: float | None
    """Second at which depth recurrence is switched on; None where it never is."""


class OverTime(NamedTuple):
    """One quantity per layer, or per layer and head, over time."""

    seconds: Series
    values: NDArray[np.floating]
    """[entries, layers] or [entries, layers, heads]."""


def loss_curves(runs: Mapping[Label, Curve]) -> Figure:
    """Training loss and learning-rate multiplier over seconds."""
    figure, (top, bottom) = plots.figure(5.0, rows=2, sharex=True, height_ratios=[3, 1])
    for label, curve in runs.items():
        top.plot(curve.seconds, curve.loss, label.line, color=label.color, linewidth=1.6, label=label.text)
        bottom.plot(curve.seconds, curve.rate, label.line, color=label.color, linewidth=1.6)
        for axes, at in ((top, curve.loop_at), (bottom, curve.loop_at)):
            if at is None:
                continue
            axes.axvline(at, color=label.color if len(runs) > 1 else plots.GREY, linestyle=":", linewidth=1.2)
    marks = [curve.loop_at for curve in runs.values() if curve.loop_at is not None]
    if len(marks) == 1:
        top.annotate(
            "depth recurrence on", (marks[0], 0.97), (5, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=plots.GREY, va="top",
        )  # fmt: skip
    top.set_ylabel("training loss\n(nats per token)")
    bottom.set_ylabel("learning rate\n(share of full)")
    bottom.set_ylim(0, 1.08)
    bottom.set_xlabel("seconds of training")
    if len(runs) > 1:
        top.legend(frameon=False)
    plots.title(top, "Loss and learning rate")
    return figure


def gradient_norms(runs: Mapping[Label, OverTime]) -> Figure:
    """Gradient norm of every layer over seconds, a panel per layer, on one logarithmic scale."""
    layers = max(run.values.shape[1] for run in runs.values())
    columns = min(4, layers)
    rows = math.ceil(layers / columns)
    figure, panels = plots.figure(1.6 * rows + 1.2, rows=rows, columns=columns, sharex=True, sharey=True)
    for layer, axes in enumerate(panels):
        if layer >= layers:
            axes.remove()
            continue
        for label, run in runs.items():
            if layer < run.values.shape[1]:
                norms = run.values[:, layer]
                axes.semilogy(run.seconds, norms, label.line, color=label.color, linewidth=1.1, label=label.text)
        axes.set_title(f"layer {layer}", loc="left", fontsize="small", color=plots.GREY)
        lowest = layer + columns >= layers
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel("seconds of training" if lowest else "")
        axes.set_ylabel("" if layer % columns else "norm (nats)")
    if max(run.values.max() for run in runs.values()) > 30 * min(run.values.min() for run in runs.values()):
        panels[0].yaxis.minorticks_off()  # decades are enough; the axis is shared, and small ticks take half the time
    plots.headline(figure, "Gradient norm by layer, before the global clip")
    if len(runs) > 1:
        plots.legend_below(figure, panels[0])
    return figure


def heads_over_time(runs: Mapping[Label, OverTime], quantity: str, heading: str) -> Figure:
    """A row per layer and head, seconds to the right, the quantity as colour; a panel per run, one scale for all."""
    rows = max(run.values.shape[1] * run.values.shape[2] for run in runs.values())
    low = min(float(run.values.min()) for run in runs.values())
    high = max(float(run.values.max()) for run in runs.values())
    figure, panels = plots.figure(min(1.6 + 0.11 * rows, 9.0), columns=len(runs))
    for axes, (label, run) in zip(panels, runs.items(), strict=True):
        entries, layers, heads = run.values.shape
        middle = (run.seconds[1:] + run.seconds[:-1]) / 2
        edges = np.concatenate(
            [[0.0], middle, [run.seconds[-1] + (run.seconds[-1] - middle[-1] if entries > 1 else 1)]]
        )
        mesh = axes.pcolormesh(
            edges, np.arange(layers * heads + 1), run.values.reshape(entries, -1).T, cmap=plots.SEQUENTIAL,
            vmin=low, vmax=max(high, low + 1e-6), rasterized=True,
        )  # fmt: skip
        axes.grid(visible=False)
        axes.set_ylim(layers * heads, 0)
        axes.hlines(heads * np.arange(1, layers), edges[0], edges[-1], color="white", linewidth=1.2)
        axes.set_yticks(heads * (np.arange(layers) + 0.5), [f"layer {layer}" for layer in range(layers)])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("seconds of training")
        plots.title(axes, label.text if len(runs) > 1 else heading)
    if len(runs) > 1:
        plots.headline(figure, heading)
    figure.colorbar(mesh, ax=panels, label=quantity, aspect=30, pad=0.02)
    return figure


def lines_over_time(runs: Mapping[Label, OverTime], entry: str, quantity: str, heading: str) -> Figure:
    """A line per layer (or what `entry` calls it) over seconds; a panel per run, on one scale."""
    figure, panels = plots.figure(3.2, columns=len(runs), sharey=True)
    shades = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.SKY, plots.GREY)
    marks = ("-", "--", ":", "-.")
    for axes, (label, run) in zip(panels, runs.items(), strict=True):
        count = run.values.shape[1]
        for place in range(count):
            axes.plot(
                run.seconds, run.values[:, place], marks[place % 4], color=shades[place % 6], linewidth=1.4,
                label=f"{entry} {place}" if count > 1 else entry,
            )  # fmt: skip
        axes.set_xlabel("seconds of training")
        plots.title(axes, label.text if len(runs) > 1 else heading)
    panels[0].set_ylabel(quantity)
    if (most := max(panels, key=lambda axes: len(axes.lines))) and len(most.lines) > 1:
        plots.legend_below(figure, most, columns=6)
    if len(runs) > 1:
        plots.headline(figure, heading)
    return figure


def agreement(
    losses: Mapping[str, Sequence[float]], gaps: Mapping[str, Sequence[float]], spread: Sequence[float], every: int
) -> Figure:
    """Losses of runs by step above; below, of means over so many steps, how far twins are from the first run, and seeds
    from each other.
    """
    figure, (top, bottom) = plots.figure(5.0, rows=2, sharex=True)
    steps = (np.arange(len(spread)) + 0.5) * every
    bottom.fill_between(steps, spread, color=plots.GREY, alpha=0.35, linewidth=0, label="spread of seeds")
    colors = itertools.cycle((plots.ORANGE, plots.GREEN, plots.PURPLE))
    for name, values in losses.items():
        seed = name not in gaps and name != next(iter(losses))
        color = plots.GREY if seed else next(colors) if name in gaps else plots.BLUE
        line, width = ("--" if name in gaps else "-"), (0.9 if seed else 1.3)
        top.plot(values, line, color=color, linewidth=width, zorder=1 if seed else 2, label=name)
        if name in gaps:
            bottom.plot(steps, gaps[name], marker=".", color=color, linewidth=1.4)
    top.set_ylabel("training loss\n(nats per token)")
    bottom.set_ylabel(f"distance from\n{next(iter(losses))} (nats)")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step")
    plots.title(top, "Does speed change the mathematics?")
    plots.legend_below(figure, top, bottom)
    return figure
