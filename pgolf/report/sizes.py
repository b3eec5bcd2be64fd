"""Pictures of bytes: the parts of an artifact, and what each codec needs for them."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from pgolf.report import plots
from pgolf.report.plots import Label

TOTALS = ("bytes_model", "bytes_code", "bytes_total")
GROUPS = {"attn.": "attention", "mlp.": "MLP", "tok_emb": "embedding"}
"""Beginning of a stream's name -> group."""
REST = "scales and the rest"
SHADES = 8.0
"""Percent above and below 100 at which the colours of codecs end."""


def streams(metrics: Mapping[str, object]) -> dict[str, int]:
    """Bytes of every stream of `model.pgolf` from the metrics of `compress`."""
    return {
        key.removeprefix("bytes_"): value
        for key, value in metrics.items()
        if key.startswith("bytes_") and key not in TOTALS and isinstance(value, int)
    }


def groups(sizes: Mapping[str, int]) -> dict[str, int]:
    """The same bytes by what the weights are for."""
    found = dict.fromkeys([*GROUPS.values(), REST], 0)
    for name, size in sizes.items():
        found[next((group for start, group in GROUPS.items() if name.startswith(start)), REST)] += size
    return found


def bytes_by_stream(runs: Mapping[Label, Mapping[str, int]]) -> Figure:
    """Bytes of each group above, of each stream below, largest on top, with its share of the model."""
    tables = [{name: groups(sizes) for name, sizes in runs.items()}, runs]
    lengths = [len({key for sizes in table.values() for key in sizes}) for table in tables]
    height = 0.30 * len(runs) + 0.08
    figure, panels = plots.figure(
        height * sum(lengths) + 1.9, rows=2, height_ratios=[length + 0.6 for length in lengths], sharex=True
    )
    for axes, table, heading in zip(panels, tables, ("by group", "by stream"), strict=True):
        largest = {key: max(each.get(key, 0) for each in table.values()) for each in table.values() for key in each}
        order = sorted(largest, key=largest.__getitem__)
        values = {_with_total(label, each): [each.get(key, 0) / 1000 for key in order] for label, each in table.items()}
        plots.bars(axes, order, values, _bytes_and_share)
        axes.margins(x=0.26)
        plots.title(axes, f"Bytes of model.pgolf {heading}")
    panels[1].set_xlabel("bytes (thousands)")
    if len(runs) > 1:
        plots.legend_below(figure, panels[0])
    return figure


def _with_total(label: Label, found: Mapping[str, int]) -> Label:
    return label._replace(text=f"{label.text}: {sum(found.values()):,} bytes")


def _bytes_and_share(thousands: float, total: float) -> str:
    return f"{1000 * thousands:,.0f}  ({thousands / total:.1%})"


def bytes_by_codec(percent: Mapping[str, Mapping[str, float]]) -> Figure:
    """Size of each stream (outer key) under each codec (inner) in percent of its order-0 entropy, the least in bold.

    Codecs stand in the order of the last row, the smallest first.
    """
    last = list(percent.values())[-1]
    codecs = sorted(last, key=last.__getitem__)
    table = np.array([[row.get(codec, np.nan) for codec in codecs] for row in percent.values()])
    figure, (axes,) = plots.figure(0.34 * len(table) + 1.1)
    image = axes.imshow(table, cmap="PuOr", vmin=100 - SHADES, vmax=100 + SHADES, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        weight = "bold" if value == np.nanmin(table[row]) else "normal"
        color = "white" if np.dot(image.to_rgba(value)[:3], (0.3, 0.59, 0.11)) < 0.5 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, weight=weight, fontsize=9)
    axes.set_xticks(range(len(codecs)), codecs)
    axes.set_yticks(range(len(table)), list(percent))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("codec")
    axes.set_ylabel("stream")
    axes.axhline(len(table) - 1.5, color="white", linewidth=3)
    plots.title(axes, "Bytes that each codec needs: the least of a stream in bold, the last row is their sum")
    figure.colorbar(image, extend="both", label="% of order-0 entropy: less is smaller", aspect=30)
    return figure
