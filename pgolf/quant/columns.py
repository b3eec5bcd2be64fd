"""Column scales: W^_ij = q_ij s_i c_j. The inputs of a matrix are unequal, so its columns should not have equal steps.

    activation    c_j = (H_jj + damping)^(-power / 2): weights of strong inputs are rounded finer, as in AWQ (Lin et al.
                  2023), which has no error feedback; there the scales fold into the layer before, here they are stored
    loss          c_j = U_jj: with error feedback column j costs e_j^2 / U_jj^2, so all columns cost the same. Against
                  equal steps this saves 1/2 log2 of the ratio of the arithmetic to the geometric mean of 1 / U_jj^2
                  bits per weight at the same error

Both with geometric mean 1, at most `REACH` apart from it, on the grid 2^(k / 4).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.quant.config import QuantizeConfig
from pgolf.quant.gptq import Factor
from pgolf.quant.grid import geometric

STEPS = 4
"""Of the grid, per octave."""
REACH = 16.0


def column_scales(H: Tensor, factor: Factor, config: QuantizeConfig) -> Tensor:
    """c [n], float16, of a matrix with the Hessian H [n, n] and its factor."""
    if config.columns == "loss":
        u = factor.upper.diagonal().double()
        c = torch.empty_like(u).scatter_(0, factor.perm, u)
    else:
        energy = H.diagonal().double()
        energy = torch.where(factor.dead, 1.0, energy)
        c = (energy + config.damp * energy.mean()).pow(-config.columns_power / 2)
    c = c / c.log().mean().exp()
    return geometric(c.clamp(1 / REACH, REACH).half(), STEPS)


def divided(state: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are rounded, W_ij / c_j."""
    return {name: weight.float() / columns[name].float() for name, weight in state.items()}


def rescaled(factor: Factor, columns: Tensor) -> Factor:
    """The factor of c_i H_ij c_j, with the order of the columns as it was."""
    perm, upper, dead = factor
    return Factor(perm, upper / columns.float()[perm], dead)
