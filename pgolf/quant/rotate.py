"""Rows mixed by a Hadamard matrix before rounding, and mixed back on load (OptRot, a fork of PR 401).

    W' = T W,  T = Sylvester's Hadamard matrix / sqrt(m) = T^T = T^-1,  W^ = T (q s)

for matrices whose number of rows m is a power of two. The mixing is of outputs, so that H stays, and G becomes T G T.
It makes rows alike: outliers go, and so does what unequal rows save.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.quant.hessian import LOOKUP, OUTPUT
from pgolf.quant.policy import is_power


def hadamard(x: Tensor) -> Tensor:
    """T x [m, ...], float32, by the fast transform: log2(m) sums and differences of halves."""
    rows, shape, half = len(x), x.shape, 1
    x = x.float().reshape(rows, -1)
    while half < rows:
        pairs = x.view(-1, 2, half, x.size(1))
        x = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], dim=1).view(x.shape)
        half *= 2
    return x.div(math.sqrt(rows)).view(shape)


def rotated(state: Mapping[str, Tensor], hessians: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights with mixed rows as they are rounded, and the covariances that belong to them.

    What is known of the outputs as a diagonal alone is its mean afterwards, in every row.
    """
    weights, found = dict(state), dict(hessians)
    for name, weight in state.items():
        if not is_power(len(weight)):
            continue
        weights[name] = hadamard(weight)
        for key in (name + OUTPUT, name + LOOKUP):
            if (G := found.get(key)) is not None:
                found[key] = hadamard(hadamard(G).mT) if G.ndim == 2 else G.mean().expand_as(G)
    return weights, found
