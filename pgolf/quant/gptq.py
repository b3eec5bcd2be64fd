"""Full-Hessian GPTQ: round column by column and push each error into the columns not yet rounded.

Minimises tr(E H E^T), E = W - W^, for a given grid (Frantar et al. 2023; the record programs since PR 1394):

    dead columns (H_jj = 0) get H_jj = 1 and weight 0;  H_jj += damp mean(diag H)
    columns in order of falling H_jj (act-order)
    U = upper Cholesky factor of H^-1
    for each column j:  q_j = round(w_j / s),  e = (w_j - q_j s) / U_jj,  W_(j..) -= e U_(j, j..)
"""

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.grid import round_to_nearest


def inverse_factor(H: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Act-order and the upper Cholesky factor of the damped, permuted inverse of H [n, n].

    Returns (perm [n], U [n, n]). Raises InputError when H is not finite or not positive definite after damping.
    """
    if not torch.isfinite(H).all():
        raise InputError("the Hessian holds NaN or infinity: calibrate again from a model that did not diverge")
    H = H.clone()
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    perm = torch.argsort(diagonal, descending=True, stable=True)
    lower, info = torch.linalg.cholesky_ex(H[perm][:, perm])
    if info.item() == 0:
        upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if info.item() != 0:
        raise InputError(
            f"the Hessian is not positive definite with `quantize.damp` {damp}: raise it, or calibrate on more tokens"
        )
    return perm, upper


def gptq_quantize(
    W: Tensor, H: Tensor, scale: Tensor, clip: int, *, damp: float = 0.01, blocksize: int = 128
) -> Tensor:
    """Codes of W on the grid of `scale`.

    Args:
        W: weights [m, n], any float dtype. H: input covariance [n, n]. scale: row scales [m], float16.
        clip: largest code. damp: fraction of mean(diag H) added to the diagonal.
        blocksize: columns between two updates of the rest.

    Returns:
        int8 codes [m, n] in the order of the columns of W.
    """
    W = W.float().clone()
    if not torch.isfinite(W).all():
        raise InputError("the weights hold NaN or infinity: the training run diverged, train again with a lower rate")
    H = H.float()
    perm, U = inverse_factor(H, damp)
    W[:, H.diagonal() == 0] = 0
    W = W[:, perm]
    s = scale.float()
    if not torch.isfinite(s).all():
        raise InputError("the step of a row is beyond float16: lower `k_sigma`, or train again with a lower rate")
    codes = torch.empty(W.shape, dtype=torch.int8, device=W.device)
    for i1 in range(0, W.size(1), blocksize):
        i2 = min(i1 + blocksize, W.size(1))
        W1, U1 = W[:, i1:i2], U[i1:i2, i1:i2]
        Err1 = torch.empty_like(W1)
        for j in range(i2 - i1):
            q = round_to_nearest(W1[:, j], s, clip)
            codes[:, i1 + j] = q
            Err1[:, j] = (W1[:, j] - q.float() * s) / U1[j, j]
            W1[:, j:].addr_(Err1[:, j], U1[j, j:], alpha=-1)
        W[:, i2:] -= Err1 @ U[i1:i2, i2:]
    return codes[:, torch.argsort(perm)]


def weighted_error(E: Tensor, H: Tensor) -> float:
    """tr(E H E^T), the rise of the layer's squared output error over the calibration tokens, for E [m, n]."""
    return float(torch.einsum("ij,jk,ik->", E.double(), H.double(), E.double()))
