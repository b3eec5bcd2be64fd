"""Pictures of a diagnosis: where the loss rises, and how the codes are distributed, beside another run's."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from pgolf.lab.diagnosis import Diagnosis
from pgolf.report import plots

Array = npt.NDArray[np.floating]
NORMAL = "{}: Gaussian of the same spread"
SHOWN = 24
"""Matrices with the largest shares that are drawn."""


def loss_shares(matrices: list[Diagnosis]) -> Figure:
    """Bars: how much of the rise comes back without the rounding of one matrix, largest on top."""
    measured = sorted((each for each in matrices if each.share is not None), key=lambda each: each.share or 0.0)
    drawn = measured[-SHOWN:]
    figure, (axes,) = plots.figure(0.26 * len(drawn) + 1.2)
    names = [each.report.name.removesuffix(".weight") for each in drawn]
    shares = {plots.Label("share"): [100 * (each.share or 0.0) for each in drawn]}
    plots.bars(axes, names, shares, lambda percent, _: f"{percent:z.1f}")
    axes.axvline(0, color=plots.GREY, linewidth=1)
    axes.margins(x=0.1)
    axes.set_xlabel("percent of the rise of the loss")
    more = f": the {SHOWN} largest of {len(measured)}" if len(measured) > SHOWN else ""
    plots.title(axes, f"Loss that comes back when one matrix keeps full precision{more}")
    return figure


def code_distributions(runs: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Share of each code by role, a panel per role, on a log scale; a Gaussian of equal spread as a thin line.

    runs: name -> role -> counts of the codes -127..127.
    """
    roles = list(dict.fromkeys(role for counts in runs.values() for role in counts))
    columns = min(3, len(roles))
    rows = -(-len(roles) // columns)
    figure, panels = plots.figure(2.1 * rows + 1.1, rows=rows, columns=columns, sharey=True)
    codes = np.arange(-127.0, 128.0)
    for axes, role in zip(panels, roles, strict=False):
        for look, counts in zip(plots.labels(list(runs)), runs.values(), strict=True):
            if role not in counts:
                continue
            share = counts[role].double().numpy() / float(counts[role].sum())
            present = share > 0
            axes.semilogy(codes[present], share[present], look.line, color=look.color, linewidth=1.5, label=look.text)
            spread = max(float(np.sqrt((share * codes**2).sum())), 1e-3)
            axes.semilogy(
                codes, _gaussian(codes, spread), color=look.color, linewidth=0.6, label=NORMAL.format(look.text)
            )
        axes.set_ylim(1e-8, 1)
        extent = max(int(np.abs(codes[counts[role].numpy() > 0]).max()) for counts in runs.values() if role in counts)
        axes.set_xlim(-1.1 * extent - 1, 1.1 * extent + 1)
        plots.title(axes, role)
    for axes in panels[len(roles) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("share of the codes")
    for axes in panels[max(0, len(roles) - columns) : len(roles)]:
        axes.set_xlabel("code")
    plots.headline(figure, "Codes of the matrices by role")
    plots.legend_below(figure, panels[0])
    return figure


def _gaussian(codes: Array, spread: float) -> Array:
    density: Array = np.exp(-0.5 * (codes / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    return density
