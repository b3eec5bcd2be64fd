"""Pictures of a validation score taken apart; numbers are those of `pgolf.report.breakdown`."""

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from pgolf.report import plots
from pgolf.report.breakdown import CLASSES, Gain, Part
from pgolf.report.plots import Label

Runs = Mapping[Label, Sequence[Part]]


def bpb_by_source(runs: Runs) -> Figure:
    """Bits per byte of each source of documents, the hardest on top, with its share of the text."""
    first = next(iter(runs.values()))
    order = [part.label for part in reversed(first)]
    total = sum(part.bytes for part in first)
    share = {part.label: f"{part.label}  ({part.bytes / total:.0%})" for part in first}
    figure, (axes,) = plots.figure((0.26 * len(runs) + 0.12) * len(order) + 1.5)
    plots.bars(axes, [share[name] for name in order], _values(runs, order, lambda part: part.bpb), _number)
    axes.margins(x=0.16)
    axes.set_xlabel("bits per byte")
    plots.title(axes, "Score by source of the document (share of the text)")
    if len(runs) > 1:
        plots.legend_below(figure, axes)
    return figure


def bpb_by_class(runs: Runs) -> Figure:
    """What each class of tokens adds to the score (left: the bars sum to it), and nats per token of it (right)."""
    order = [name for name in reversed(CLASSES) if any(part.label == name for run in runs.values() for part in run)]
    figure, (left, right) = plots.figure(
        (0.26 * len(runs) + 0.12) * len(order) + 1.5, columns=2, sharey=True, width_ratios=[5, 4]
    )
    whole = {label: sum(part.bytes for part in run) for label, run in runs.items()}
    contributions = {
        label: [part._replace(bytes=whole[label]) for part in run] for label, run in runs.items()
    }  # bits of the class over bytes of all text
    plots.bars(left, order, _values(contributions, order, lambda part: part.bpb), _number)
    plots.bars(right, order, _values(runs, order, lambda part: part.bits * math.log(2) / part.targets), _number)
    left.margins(x=0.18)
    right.margins(x=0.22)
    left.set_xlabel("part of the score (bits per byte of all text)")
    right.set_xlabel("nats per token of the class")
    plots.title(left, "Score by class of token")
    if len(runs) > 1:
        plots.legend_below(figure, left)
    return figure


def bpb_by_size(lengths: Runs, positions: Runs) -> Figure:
    """Bits per byte by the document's length (left) and by how much of the document was read before (right)."""
    figure, panels = plots.figure(3.6, columns=2, sharey=True)
    texts = (("length of the document (bytes)", "Score by length"), ("bytes of it already read", "Score by position"))
    for axes, runs, (axis, heading) in zip(panels, (lengths, positions), texts, strict=True):
        names = sorted({part.label for run in runs.values() for part in run}, key=_first_number)
        for label, run in runs.items():
            known = [part for part in run if part.bytes]
            places = [names.index(part.label) for part in known]
            values = [part.bpb for part in known]
            axes.plot(
                places, values, label.line, marker="o", color=label.color, linewidth=1.6, label=label.text
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_xlabel(axis)
        plots.title(axes, heading)
    panels[0].set_ylabel("bits per byte")
    if len(runs) > 1:
        plots.legend_below(figure, panels[0])
    return figure


def ttt_gains(runs: Mapping[Label, Gain]) -> Figure:
    """Gain of test-time training along the stream (left) and over the seconds of the evaluation (right)."""
    timed = {label: gain for label, gain in runs.items() if len(gain.seconds)}
    figure, panels = plots.figure(3.6, columns=2 if timed else 1, sharey=True)
    for label, gain in runs.items():
        panels[0].plot(gain.targets / 1000, 1000 * gain.stretch, "o", color=label.color, markersize=3.5, alpha=0.6,
                       label=f"{label.text}: stretch alone")  # fmt: skip
        panels[0].plot(gain.targets / 1000, 1000 * gain.running, label.line, color=label.color, linewidth=1.8,
                       label=f"{label.text}: all so far")  # fmt: skip
        if label in timed:
            panels[1].plot(gain.seconds, 1000 * gain.by_then, label.line, marker=".", color=label.color, linewidth=1.8)
    for axes in panels:
        axes.axhline(0, color=plots.GREY, linewidth=1)
    panels[0].set_ylabel("bits per byte gained\n(thousandths)")
    panels[0].set_xlabel("place in the validation stream\n(thousands of targets)")
    plots.title(panels[0], "Gain of test-time training along the text")
    if timed:
        panels[1].set_xlabel("seconds of evaluation")
        panels[1].set_xlim(left=0)
        plots.title(panels[1], "over time, all so far")
    plots.legend_below(figure, panels[0], columns=2)
    return figure


def ttt_gains_by_position(runs: Mapping[Label, Sequence[tuple[str, float]]]) -> Figure:
    """Gain of test-time training by how much of the document was read before."""
    figure, (axes,) = plots.figure(3.2)
    names = sorted({label for run in runs.values() for label, _ in run}, key=_first_number)
    for label, run in runs.items():
        places, values = [names.index(label) for label, _ in run], [1000 * gain for _, gain in run]
        axes.plot(places, values, label.line, marker="o", color=label.color, linewidth=1.6, label=label.text)
    axes.axhline(0, color=plots.GREY, linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("bytes of the document already read")
    axes.set_ylabel("bits per byte gained\n(thousandths)")
    plots.title(axes, "Gain of test-time training by position in the document")
    if len(runs) > 1:
        plots.legend_below(figure, axes)
    return figure


def _values(runs: Runs, order: Sequence[str], value: Callable[[Part], float]) -> dict[Label, list[float]]:
    """A value per name of `order`; 0 where a run has no such part."""
    known = {label: {part.label: value(part) for part in run} for label, run in runs.items()}
    return {label: [found.get(name, 0.0) for name in order] for label, found in known.items()}


def _number(value: float, _: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "no text"


def _first_number(label: str) -> float:
    low = label.partition("–")[0]
    return float(low.rstrip("kM")) * (1024 if low.endswith("k") else 1 << 20 if low.endswith("M") else 1)
