"""GPTQ with feedback to other rows as well: the errors of some outputs make up for those of others.

Minimises tr(G E H E^T) with the sensitivity G of the outputs (`pgolf.quant.sensitivity`; as in YAQA, Tseng et al. 2025,
by blocks of rows). With V^T V = G^-1, V upper triangular, rows in V's order, blocks b of rows one after the other:

    GPTQ of W_b under H gives E_b;   W_(rows after b) -= V_(b, after)^T (V_bb^T)^-1 E_b

which is what is best for the rows not yet rounded. Within a block the rows are rounded as if independent.
"""

import torch
from torch import Tensor

from pgolf.quant.gptq import Factor, Rounding, feed_back


def feed_back_both(
    W: Tensor, inputs: Factor, outputs: Factor, scale: Tensor, rounding: Rounding, blocksize: int, row_block: int
) -> Tensor:
    """Codes int8 of W [b, m, n].

    inputs, outputs: factors of H [b, n, n] and G [b, m, m]. scale [b, m]. rounding: must treat all rows of a matrix
    alike. blocksize, row_block: columns and rows between two updates.
    """
    perm, V, _ = outputs
    rows = perm[..., None].expand(W.shape)
    W, s = W.float().gather(-2, rows), scale.float().gather(-1, perm)
    codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
    for a in range(0, W.size(-2), row_block):
        b = min(a + row_block, W.size(-2))
        codes[..., a:b, :] = feed_back(W[..., a:b, :], inputs, s[..., a:b], rounding, blocksize)
        E = W[..., a:b, :] - codes[..., a:b, :].float() * s[..., a:b, None]
        E = torch.linalg.solve_triangular(V[..., a:b, a:b].mT, E, upper=False)
        W[..., b:, :] -= V[..., a:b, b:].mT @ E
    return torch.empty_like(codes).scatter_(-2, rows, codes)
