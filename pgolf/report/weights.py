"""Pictures of the weights: what quantization did to each tensor, and how the layers of two runs are distributed."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pgolf.errors import InputError
from pgolf.report import plots
from pgolf.report.plots import Label

_MATRIX = re.compile(r"blocks\.(\d+)\.((attn|mlp)\..+)\.weight$")
BINS = np.linspace(-4, 4, 65)
"""Edges of the histograms, in standard deviations of all matrices of the first run."""
LOOKS = (
    ("o", plots.BLUE), ("s", plots.ORANGE), ("^", plots.GREEN), ("D", plots.PURPLE), ("v", plots.SKY),
    ("P", plots.GREY), ("X", plots.BLUE), ("<", plots.ORANGE),
)  # fmt: skip


class Layer(NamedTuple):
    """Histogram of one layer's attention or MLP weights."""

    density: NDArray[np.floating]
    """Per standard deviation, over `BINS`."""
    rms: float


def quantization_errors(runs: Mapping[Label, Mapping[str, float]]) -> Figure:
    """Relative error of every quantized tensor; a mark per matrix of a layer, a panel per run on one scale."""
    figure, panels = plots.figure(3.9, columns=len(runs), sharey=True)
    kinds = sorted({_kind(name) for errors in runs.values() for name in errors})
    for axes, (label, errors) in zip(panels, runs.items(), strict=True):
        layers = 1 + max((int(match[1]) for key in errors if (match := _MATRIX.match(key))), default=0)
        for kind, (marker, color) in zip(kinds, LOOKS * len(kinds), strict=False):
            points = sorted((_place(key), value) for key, value in errors.items() if _kind(key) == kind)
            places = [layers + 1.0 if place is None else place for place, _ in points]
            line = "-" if len(points) > 1 else ""
            axes.semilogy(
                places, [value for _, value in points], line, marker=marker, color=color, linewidth=0.8, markersize=6,
                label=kind,
            )  # fmt: skip
        marked = range(0, layers, 1 if layers < 8 else 2)
        axes.set_xticks([*marked, layers + 1.0], [*map(str, marked), "outside"])
        axes.set_xlabel("layer")
        plots.title(axes, label.text if len(runs) > 1 else "Error of quantization by tensor")
    panels[0].set_ylabel("tr(E H Eᵀ) / tr(W H Wᵀ)\n(share of the output's energy)")
    plots.legend_below(figure, panels[0])
    if len(runs) > 1:
        plots.headline(figure, "Error of quantization by tensor")
    return figure


def _kind(name: str) -> str:
    match = _MATRIX.match(name)
    return match[2] if match else name.removesuffix(".weight")


def _place(name: str) -> int | None:
    match = _MATRIX.match(name)
    return int(match[1]) if match else None


def unit(state: Mapping[str, Tensor]) -> float:
    """Root mean square of all matrices of the blocks: the unit of `histograms`."""
    matrices = [tensor for name, tensor in state.items() if _MATRIX.match(name)]
    count = sum(tensor.numel() for tensor in matrices)
    energy = sum(float(tensor.double().square().sum()) for tensor in matrices)
    if not energy:
        raise InputError("the weights are all 0, or there are none: train first")
    return float(np.sqrt(energy / count))


def histograms(state: Mapping[str, Tensor], scale: float) -> dict[str, list[Layer]]:
    """`attention` and `MLP` -> a histogram per layer, of the weights divided by `scale`."""
    found: dict[str, dict[int, list[NDArray[np.floating]]]] = {"attention": {}, "MLP": {}}
    for name, tensor in state.items():
        if match := _MATRIX.match(name):
            part = found["attention" if match[3] == "attn" else "MLP"]
            part.setdefault(int(match[1]), []).append(tensor.float().flatten().numpy() / scale)
    return {part: [_layer(np.concatenate(layers[index])) for index in sorted(layers)] for part, layers in found.items()}


def _layer(values: NDArray[np.floating]) -> Layer:
    counts, _ = np.histogram(values, BINS)
    return Layer(counts / (len(values) * np.diff(BINS)), float(np.sqrt(np.square(values, dtype=np.float64).mean())))


def weight_distributions(runs: Mapping[Label, Mapping[str, list[Layer]]]) -> Figure:
    """Densities of the weights, a row per layer, attention left and MLP right; two runs lie over each other."""
    layers = max(len(part) for run in runs.values() for part in run.values())
    figure, panels = plots.figure(0.55 * layers + 1.5, columns=2, sharey=True, sharex=True)
    middle = (BINS[1:] + BINS[:-1]) / 2
    top = max(layer.density.max() for run in runs.values() for part in run.values() for layer in part)
    for axes, part in zip(panels, ("attention", "MLP"), strict=True):
        for label, run in runs.items():
            for index, layer in enumerate(run[part]):
                base, height = -index, 0.92 * layer.density / top
                shown = None if index else label.text
                axes.plot(middle, base + height, label.line, color=label.color, linewidth=1.3, label=shown)
                if label.hatch is None:
                    axes.fill_between(middle, base, base + height, color=label.color, alpha=0.18, linewidth=0)
        axes.set_yticks(-np.arange(layers), [f"layer {index}" for index in range(layers)])
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("weight (root mean square of all matrices = 1)")
        plots.title(axes, f"Weights of the {part} matrices")
    panels[0].set_ylabel("density")
    if len(runs) > 1:
        plots.legend_below(figure, panels[0])
    return figure
