"""Row scales by rules other than the row's deviation (`pgolf.quant.grid`): its extremes, its inputs, its effect on the
loss.

Steps by the loss. An error in row i of a matrix raises the loss by 1/2 A_i per unit of energy and column, with

    A_i = G_ii h + B_i,   h = geometric mean of 1 / U_jj^2

G and B of `pgolf.quant.sensitivity`, U of GPTQ. Steps s_i cost A_i s_i^2 / 24 per weight and -log2 s_i bits, so at
every size the loss is least where all weights cost the same (reverse water-filling):

    s_i = k / c D / sqrt(A_i),   log D = mean over all weights of log(std_i sqrt(A_i))

D makes k mean what it means for SDClip: the same k on every tensor gives the same rate, otherwise distributed.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.quant.grid import absmax_scale, positive_half

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
"""Of |w| in a row, tried as clips by GPTQ-lite."""
LEAST = 1e-4
"""Least A of a row, relative to the mean of its matrix: rows that calibration never saw."""
WIDEST = 127
"""Largest code that int8 holds on both sides."""


class Weighed(NamedTuple):
    """A matrix [m, n] with what an error in each row costs."""

    weight: Tensor
    importance: Tensor
    """A [m]."""
    step: float
    """k / c."""


def importance(G: Tensor, upper: Tensor, lookup: Tensor | None = None) -> Tensor:
    """A [m], float64, of G [m, m] or [m], U [n, n] and B [m] of a matrix."""
    h = upper.diagonal().double().square().log().mean().neg().exp()
    A = (G.diagonal() if G.ndim == 2 else G).double() * h
    A = A if lookup is None else A + lookup.double()
    return A.clamp_min(LEAST * float(A.mean())).clamp_min(1e-300)


def loss_scales(matrices: Mapping[str, Weighed]) -> dict[str, Tensor]:
    """Row scales [m], float16, of all matrices by the formula above; none clips a value to fit int8."""
    logs, count = 0.0, 0
    for weight, A, _ in matrices.values():
        deviation = weight.double().std(dim=1)
        deviation = deviation.clamp_min(1e-3 * float(deviation.mean())).clamp_min(1e-30)
        logs += float((deviation * A.sqrt()).log().sum()) * weight.size(1)
        count += weight.numel()
    D = torch.tensor(logs / max(count, 1), dtype=torch.float64).exp()
    return {
        name: torch.maximum(positive_half((step * D / A.sqrt()).float()), absmax_scale(weight, WIDEST))
        for name, (weight, A, step) in matrices.items()
    }


def hessian_aware(scale: Tensor, weight: Tensor, diagonal: Tensor, strength: float) -> Tensor:
    """SDClip scales [m] times 1 + strength (r_i - 1), r_i = mean_j |W_ij| d_j over its mean (PR 1412).

    diagonal: of the damped Hessian [n]; d is it over its mean, at least 1e-8.
    """
    d = diagonal.clamp_min(1e-8)
    r = weight.float().abs() @ (d / d.mean()).float() / weight.size(1)
    return positive_half(scale.float() * (1 + strength * (r / r.mean().clamp_min(1e-30) - 1)))


def extreme_scale(weight: Tensor, clip: int, least_max: float) -> Tensor:
    """Scales max(max |w_row|, least_max) / c, the grid of late QAT (`pgolf.train.qat`), in float16."""
    return positive_half(weight.float().abs().amax(dim=1).clamp_min(least_max) / clip)


def percentile_scale(
    weight: Tensor, clip: int, least_max: float, per_row: bool, percentiles: Sequence[float] = PERCENTILES
) -> Tensor:
    """Scales max(quantile_p |w_row|, least_max) / c with the p of least square error of rounding (GPTQ-lite).

    One p for the whole matrix (PR 374, 635), tried with float16 scales, or one for every row (PR 401), tried with
    float32 ones.
    """
    W = weight.float()
    magnitudes = W.abs()
    best, least = torch.empty(0), torch.empty(0)
    for p in percentiles:
        edge = magnitudes.amax(dim=1) if p == 1 else torch.quantile(magnitudes, p, dim=1)
        s = edge.clamp_min(max(least_max, 1e-10)) / clip
        s = s if per_row else positive_half(s).float()
        error = (W - (W / s[:, None]).round().clamp(-clip, clip) * s[:, None]).square().mean(dim=1)
        error = error if per_row else error.mean().expand_as(error)
        best, least = (torch.where(error < least, s, best), torch.minimum(error, least)) if len(best) else (s, error)
    return positive_half(best)
