"""Initialisation of a record of 19 March; neither rule was carried on.

embedding   E = U diag(S) V^T, then S_k <- S_1 k^(-1/2), k = 1, 2, ...
resid_mix   r0 = p, r1 = 1 - p,  p = sigmoid(3 (i / (L - 1) - 1/2)) in layer i: early layers read more of x0
"""

import math

import torch
from torch import Tensor


def overtone(embedding: Tensor) -> Tensor:
    """The embedding [V, d] with its singular values replaced."""
    if embedding.is_meta:
        return embedding
    U, S, Vh = torch.linalg.svd(embedding, full_matrices=False)
    spectrum: Tensor = S[0] * torch.arange(1, len(S) + 1) ** -0.5
    return U @ (spectrum[:, None] * Vh)  # type: ignore[no-any-return]


def phased_mix(index: int, layers: int, dim: int) -> Tensor:
    """resid_mix [2, d] of layer `index`."""
    p = 1 / (1 + math.exp(-3 * (index / max(layers - 1, 1) - 0.5)))
    return torch.stack([torch.full((dim,), p), torch.full((dim,), 1 - p)])
