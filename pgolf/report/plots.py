"""Pictures of a run as PNG, byte-stable for equal input, readable without network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pgolf.artifacts import atomic_file

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"
"""Okabe-Ito colours, distinguishable with every common colour blindness."""


def _save(path: Path) -> None:
    with atomic_file(path) as temporary:
        plt.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close()


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)


def loss_curve(
    path: Path, seconds: Sequence[float], loss: Sequence[float], lr: Sequence[float], loop_at: float
) -> None:
    """Training loss (nats per token) and learning-rate multiplier over seconds; `loop_at` seconds: recurrence on."""
    _, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, height_ratios=[3, 1], layout="constrained")
    top.plot(seconds, loss, color=BLUE, linewidth=1.6)
    top.set_ylabel("training loss (nats per token)")
    top.set_title("Training", loc="left", fontweight="bold")
    bottom.plot(seconds, lr, color=ORANGE, linewidth=1.6)
    bottom.set_ylabel("rate multiplier")
    bottom.set_ylim(0, 1.08)
    bottom.set_xlabel("seconds of training")
    for axes in (top, bottom):
        _plain(axes)
        axes.axvline(loop_at, color=GREY, linestyle="--", linewidth=1)
    top.annotate(
        "depth recurrence on", (loop_at, 0.96), (5, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=GREY, va="top",
    )  # fmt: skip
    _save(path)


def bytes_by_codec(path: Path, percent: Mapping[str, Mapping[str, float]]) -> None:
    """Size of each stream (outer key) in percent of its order-0 entropy, a mark per codec (inner); ours in orange."""
    streams = list(percent)[::-1]
    codecs = sorted({codec for row in percent.values() for codec in row})
    _, axes = plt.subplots(figsize=(8, 0.42 * len(streams) + 1.6), layout="constrained")
    for codec, marker in zip(codecs, "osD^vPX*<>" * len(codecs), strict=False):
        places = [index for index, stream in enumerate(streams) if codec in percent[stream]]
        values = [percent[streams[index]][codec] for index in places]
        color = ORANGE if codec == "gauss" else GREY if codec == "order-0" else BLUE
        axes.plot(values, places, marker, color=color, label=codec, fillstyle="full" if codec == "gauss" else "none")
    axes.set_yticks(range(len(streams)), streams)
    _plain(axes)
    axes.set_xlabel("percent of order-0 entropy")
    axes.set_title("What each codec needs", loc="left", fontweight="bold")
    axes.legend(frameon=False, ncols=len(codecs), loc="lower center", bbox_to_anchor=(0.5, -0.35))
    _save(path)


def bytes_by_group(path: Path, sizes: Mapping[str, int]) -> None:
    """Bytes of each part of the artifact, largest on top, with its share."""
    ordered = sorted(sizes.items(), key=lambda item: item[1])
    total = sum(sizes.values())
    _, axes = plt.subplots(figsize=(8, 0.42 * len(ordered) + 1.4), layout="constrained")
    bars = axes.barh([name for name, _ in ordered], [size / 1000 for _, size in ordered], color=BLUE)
    axes.bar_label(bars, [f"{size:,}  ({size / total:.1%})" for _, size in ordered], padding=4, color=GREY)
    _plain(axes)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.28)
    axes.set_xlabel("bytes (thousands)")
    axes.set_title(f"model.pgolf: {total:,} bytes by stream", loc="left", fontweight="bold")
    _save(path)
