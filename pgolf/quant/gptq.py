"""Full-Hessian GPTQ: round column by column and push each error into the columns not yet rounded.

Minimises tr(E H E^T), E = W - W^, for a given grid (Frantar et al. 2023; the record programs since PR 1394):

    dead columns (H_jj = 0) get H_jj = 1 and weight 0;  H_jj += damp mean(diag H)
    columns in order of falling H_jj (act-order)
    U upper triangular with U^T U = H^-1
    for each column j:  q_j = round(w_j / s),  e = (w_j - q_j s) / U_jj,  W_(j..) -= e U_(j, j..)

Matrices of one shape are solved together: every argument may have leading axes. U comes straight from a Cholesky factor
of H with rows and columns reversed (H = R R^T, R upper, U = R^-1), in float64: no inverse of H is formed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.errors import InputError

Rounding = Callable[[Tensor, int], Tensor]
"""(a column in steps [..., m], its place in the order of rounding) -> whole numbers [..., m], within the grid."""


class Factor(NamedTuple):
    """What GPTQ needs of a Hessian."""

    perm: Tensor
    """Columns in the order of rounding, [..., n]."""
    upper: Tensor
    """U, float32 [..., n, n], in that order."""
    dead: Tensor
    """Inputs that were never active, bool [..., n], in the order of the columns of W."""


def inverse_factor(H: Tensor, damp: float, act_order: bool = True) -> Factor:
    """Order of the columns and U of H [..., n, n], damped.

    Raises InputError when H is not finite or not positive definite after damping.
    """
    if not torch.isfinite(H).all():
        raise InputError("the Hessian holds NaN or infinity: calibrate again from a model that did not diverge")
    H = H.double()
    diagonal = H.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    diagonal = torch.where(dead, 1.0, diagonal)
    diagonal = diagonal + damp * diagonal.mean(dim=-1, keepdim=True)
    H = torch.where(torch.eye(H.size(-1), dtype=torch.bool, device=H.device), diagonal[..., None], H)
    perm = torch.arange(H.size(-1), device=H.device).expand(diagonal.shape)
    if act_order:
        perm = torch.argsort(diagonal, dim=-1, descending=True, stable=True)
    H = H.gather(-2, perm[..., :, None].expand_as(H)).gather(-1, perm[..., None, :].expand_as(H))
    lower, info = torch.linalg.cholesky_ex(H.flip(-2, -1))
    if info.any():
        raise InputError(
            f"the Hessian is not positive definite with `quantize.damp` {damp}: raise it, or calibrate on more tokens"
        )
    eye = torch.eye(H.size(-1), dtype=H.dtype, device=H.device).expand_as(H)
    upper = torch.linalg.solve_triangular(lower, eye, upper=False).flip(-2, -1)
    return Factor(perm, upper.float(), dead)


def gptq_quantize(
    W: Tensor, H: Tensor, scale: Tensor, clip: int, *, damp: float = 0.01, blocksize: int = 128, act_order: bool = True
) -> Tensor:
    """Codes of W on the grid of `scale`.

    Args:
        W: weights [..., m, n], any float dtype. H: input covariance [..., n, n]. scale: row scales [..., m], float16.
        clip: largest code. damp: fraction of mean(diag H) added to the diagonal.
        blocksize: columns between two updates of the rest. act_order: columns in order of falling H_jj, else as they
        come.

    Returns:
        int8 codes [..., m, n] in the order of the columns of W.
    """
    if not torch.isfinite(W).all():
        raise InputError("the weights hold NaN or infinity: the training run diverged, train again with a lower rate")
    factor = inverse_factor(H, damp, act_order)
    if not torch.isfinite(scale.float()).all():
        raise InputError("the step of a row is beyond float16: lower `k_sigma`, or train again with a lower rate")
    return feed_back(W, factor, scale, lambda steps, _: steps.round().clamp_(-clip, clip), blocksize)


def feed_back(W: Tensor, factor: Factor, scale: Tensor, rounding: Rounding, blocksize: int = 128) -> Tensor:
    """Codes int8 of W [..., m, n]; the loop of the module's formula, with any `rounding` of a column.

    factor: of H [..., n, n]. scale: row scales [..., m].
    """
    perm, U, dead = factor
    W = W.float().masked_fill(dead[..., None, :], 0).gather(-1, perm[..., None, :].expand(W.shape))
    s, codes = scale.float(), torch.empty(W.shape, dtype=torch.int8, device=W.device)
    for i1 in range(0, W.size(-1), blocksize):
        i2 = min(i1 + blocksize, W.size(-1))
        # a column lies in one piece of memory
        W1, U1 = W[..., i1:i2].mT.contiguous(), U[..., i1:i2, i1:i2]
        errors = torch.empty_like(W1)
        for j in range(i2 - i1):
            w = W1[..., j, :]
            q = rounding(w / s, i1 + j)
            codes[..., i1 + j] = q
            errors[..., j, :] = (w - q * s) / U1[..., j, j, None]
            W1[..., j:, :] -= U1[..., j, j:, None] * errors[..., j, None, :]
        W[..., i2:] -= errors.mT @ U[..., i1:i2, i2:]
    return torch.empty_like(codes).scatter_(-1, perm[..., None, :].expand(codes.shape), codes)


def weighted_error(E: Tensor, H: Tensor) -> float:
    """tr(E H E^T), the rise of the layer's squared output error over the calibration tokens, for E [m, n]."""
    return float(((E.double() @ H.double()) * E.double()).sum())
