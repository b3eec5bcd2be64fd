"""How every picture looks: Okabe-Ito colours, light background, eight inches wide, and byte-stable files."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pgolf.artifacts import atomic_file

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#6B6B6B"
"""Okabe-Ito colours, distinguishable with every common colour blindness."""
WIDTH = 8.0
"""Inches; at 110 dots per inch as wide as the text of a page."""
LINE = 100
"""Characters that fit into that width."""
SEQUENTIAL = "cividis"
"""Colours of a quantity, light and dark in order for every eye."""


class Label(NamedTuple):
    """What a run is called and how it is drawn."""

    text: str
    color: str = BLUE
    line: str = "-"
    hatch: str | None = None


def labels(names: Sequence[str]) -> list[Label]:
    """Of one run or two; the second differs from the first in print without colours too."""
    looks = (Label(""), Label("", ORANGE, "--", "///"))
    return [look._replace(text=name) for name, look in zip(names, looks, strict=False)]


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure of the page's width and its axes in reading order; `height` in inches."""
    made = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False, **options)
    return made, [plain(each) for each in axes.flat]


def plain(axes: Axes) -> Axes:
    """Light grid, no frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def title(axes: Axes, text: str) -> None:
    """A title above the left edge."""
    axes.set_title(text, loc="left", fontweight="bold", fontsize="medium")


def bars(
    axes: Axes, names: Sequence[str], runs: Mapping[Label, Sequence[float]], write: Callable[[float, float], str]
) -> None:
    """Horizontal bars from the bottom up, one per run beside each other; `write` gets a value and the run's sum.

    NaN is no bar, and what `write` says of it.
    """
    thick = 0.8 / len(runs)
    for index, (label, values) in enumerate(runs.items()):
        places = np.arange(len(names)) + thick * ((len(runs) - 1) / 2 - index)
        drawn = axes.barh(
            places, np.nan_to_num(values), thick * 0.92, color=label.color, hatch=label.hatch, edgecolor="white",
            linewidth=0, label=label.text,
        )  # fmt: skip
        axes.bar_label(
            drawn, [write(value, sum(values)) for value in values], padding=4, color="#444444", fontsize=9
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)


def size_against_score(axes: Axes, cap: int, largest: float) -> None:
    """What the axes of a front say; the cap as a line where it is near the `largest` model drawn."""
    if cap < 2 * largest:
        axes.axvline(cap / 1e6, color=ORANGE, linestyle="--", linewidth=1.2, label=f"cap: {cap:,} bytes")
    axes.set_xlabel("bytes of the model (millions)")
    axes.set_ylabel("bits per byte of the shipped weights")


def headline(made: Figure, text: str) -> None:
    """A title of the whole figure, above the titles of its panels."""
    made.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize=10)


def legend_below(made: Figure, *axes: Axes, columns: int = 4) -> None:
    """One legend under the whole figure, with what `axes` show, in as many columns as fit."""
    shown = [dict(zip(*reversed(each.get_legend_handles_labels()), strict=True)) for each in axes]
    texts, handles = zip(*{text: handle for each in shown for text, handle in each.items()}.items(), strict=True)
    fitting = LINE // (max(map(len, texts)) + 8)
    ncols = max(1, min(columns, len(texts), fitting))
    made.legend(handles, texts, frameon=False, loc="outside lower center", ncols=ncols)


def save(made: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the name's ending; equal figures give equal bytes."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(render(made, path.suffix.removeprefix(".")))


def render(made: Figure, form: str) -> bytes:
    """The figure as `png` or `svg`."""
    out = io.BytesIO()
    varying: dict[str, None] = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "pgolf", "hatch.linewidth": 0.6}):
        if (layout := made.get_layout_engine()) is not None:
            layout.execute(made)  # here, because `savefig` would draw everything once more to find the same places,
            made.set_layout_engine(None)  # and again for a second file of the figure
        made.savefig(out, format=form, dpi=110, metadata=varying)
    return out.getvalue()


def inline_svg(made: Figure, prefix: str, label: str) -> str:
    """The figure as an element of a page: scales with it, ids begin with `prefix`, `label` is its text alternative."""
    text = render(made, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(xlink:href="|\burl\()#', rf"\g<1>#{prefix}-", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{label}">{rest}'
