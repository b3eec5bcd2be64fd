"""LQER: add back a low-rank part of the rounding error, itself quantized (asymmetric: PR 1797, PR 1855).

    E = W - q s = U S V^T,   A = U_r S_r [m, r],   B = V_r^T [r, n],   W^ = q s + A^ B^

A B is the best approximation of E of rank r in the Frobenius norm. The factors are stored in one of two ways:

    asymmetric    A^ = qA sA, qA in [-2, 1], one scale sA = float16(max|A| / 1.5)
                  B^ = qB sB, qB in [-8, 7], one scale float16(max|group| / 7.5) per group of B, row by row
    symmetric     both factors with one scale float16(max|row| / c) per row, codes in [-c, c], c = 2^(bits-1) - 1

The asymmetric grids use every code of 2 and 4 bits; the largest positive value of A is clipped to sA, two thirds of it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import LqerConfig
from pgolf.quant.grid import absmax_scale, dequantize, positive_half, round_to_nearest

ASYMMETRIC = (".lqA_a", ".lqAs_a", ".lqB_a", ".lqBs_a")
SYMMETRIC = (".lqA", ".lqAs", ".lqB", ".lqBs")
"""What follows a matrix's name in the keys of A, its scales, B and its scales."""
A_BITS, B_BITS = 2, 4
"""Code widths of the asymmetric factors."""


def lqer_factors(E: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [m, r] = U_r S_r and B [r, n] = V_r^T of E [m, n], float32, r = min(rank, m, n)."""
    U, S, Vh = torch.linalg.svd(E.float(), full_matrices=False)
    return U[:, :rank] * S[:rank], Vh[:rank]


def largest_errors(norms: Mapping[str, float], count: int) -> list[str]:
    """The `count` names of largest norm, in order of falling norm; of equal ones the first."""
    return sorted(norms, key=lambda name: -norms[name])[:count]


def factor_shapes(shape: tuple[int, ...], config: LqerConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Key suffix -> type and shape of what is stored for a matrix [m, n], in the order of `ASYMMETRIC`.

    Factors whose r n elements of B do not fill whole groups are stored symmetrically.
    """
    m, n = shape
    r = min(config.rank, m, n)
    if config.asymmetric and r * n % config.group == 0:
        suffixes, sizes = ASYMMETRIC, [(m, r), (), (r, n), (r * n // config.group,)]
    else:
        suffixes, sizes = SYMMETRIC, [(m, r), (m,), (r, n), (r,)]
    return dict(zip(suffixes, zip(("int8", "float16", "int8", "float16"), sizes, strict=True), strict=True))


def quantize_factors(A: Tensor, B: Tensor, config: LqerConfig) -> dict[str, Tensor]:
    """The stored tensors of A [m, r] and B [r, n] by key suffix; see `factor_shapes`."""
    if ASYMMETRIC[0] in factor_shapes((A.size(0), B.size(1)), config):
        return dict(zip(ASYMMETRIC, asymmetric(A, B, config.group), strict=True))
    clip = 2 ** (config.factor_bits - 1) - 1
    return dict(zip(SYMMETRIC, symmetric(A, B, clip), strict=True))


def asymmetric(A: Tensor, B: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qA int8 [m, r], sA float16 [], qB int8 [r, n], sB float16 [r n / group]."""
    sA = _finite(positive_half(A.abs().max() / 1.5))
    qA = (A / sA.float()).round().clamp(-2, 1).to(torch.int8)
    groups = B.reshape(-1, group)
    sB = _finite(positive_half(groups.abs().amax(dim=1) / 7.5))
    qB = (groups / sB.float()[:, None]).round().clamp(-8, 7).to(torch.int8)
    return qA, sA, qB.view_as(B), sB


def symmetric(A: Tensor, B: Tensor, clip: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """qA int8 [m, r], sA float16 [m], qB int8 [r, n], sB float16 [r]."""
    sA, sB = _finite(absmax_scale(A, clip)), _finite(absmax_scale(B, clip))
    return round_to_nearest(A, sA, clip), sA, round_to_nearest(B, sB, clip), sB


def correction(stored: Mapping[str, Tensor], name: str) -> Tensor | None:
    """A^ B^ [m, n], float32, of the matrix `name`; None where it has no correction."""
    if f"{name}{ASYMMETRIC[0]}" in stored:
        qA, sA, qB, sB = (stored[f"{name}{suffix}"] for suffix in ASYMMETRIC)
        B = qB.float().view(len(sB), -1) * sB.float()[:, None]
        return (qA.float() * sA.float()) @ B.view(qB.shape)
    if f"{name}{SYMMETRIC[0]}" in stored:
        qA, sA, qB, sB = (stored[f"{name}{suffix}"] for suffix in SYMMETRIC)
        return dequantize(qA, sA) @ dequantize(qB, sB)
    return None


def _finite(scale: Tensor) -> Tensor:
    if not torch.isfinite(scale).all():
        raise InputError("the rounding error is beyond float16: lower `k_sigma`, or train again with a lower rate")
    return scale
