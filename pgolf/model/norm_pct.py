"""Norm-PCT-Dropout (PR 1520): while training, the tokens with the largest hidden activations lose their MLP output.

    r_t = |f_t| over the hidden units;  theta = q-quantile of r over the call's tokens;  f_t <- 0 where r_t >= theta

No rescaling and no gradient through the mask. It drops tokens, not neurons as its README says: 1 % of them in each
layer at q = 0.99. The only evidence published is a training loss.
"""

import math

import torch
from torch import Tensor


def norm_pct_dropout(f: Tensor, quantile: float) -> Tensor:
    """f [B, T, F] with the rows of the largest norms zeroed."""
    norms: Tensor = torch.linalg.vector_norm(f.detach(), dim=-1, keepdim=True, dtype=torch.float32)
    return f * (norms < linear_quantile(norms.flatten(), quantile))


def linear_quantile(values: Tensor, q: float) -> Tensor:
    """q-quantile of values [n], interpolated linearly as in torch.quantile, which stops at 16 million values."""
    place = q * (values.numel() - 1)
    ordered = values.sort().values
    return torch.lerp(ordered[math.floor(place)], ordered[math.ceil(place)], place - math.floor(place))
