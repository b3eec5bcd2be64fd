"""Mousse: a diagonal preconditioner on both sides of Muon's update, before its orthogonalisation (PR 401's author)."""

from collections.abc import Mapping

import torch
from torch import Tensor

BETA = 0.99


def first_squares(stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ones, float32, as the mean squares of stacks [B, m, n] by key: `KEY.rows` [B, m, 1] and `KEY.cols` [B, 1, n]."""
    squares = {}
    for key, stack in stacks.items():
        squares[f"{key}.rows"] = torch.ones_like(stack[..., :1], dtype=torch.float32)
        squares[f"{key}.cols"] = torch.ones_like(stack[:, :1], dtype=torch.float32)
    return squares


def precondition(u: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Mousse: take u [B, m, n] into its mean squares rows [B, m, 1] and cols [B, 1, n], then divide by their roots.

    r <- .99 r + .01 mean over columns of u^2, c likewise over rows, both from 1; denominators are at least 1e-8.
    """
    square = u.square()
    rows.lerp_(square.mean(-1, keepdim=True).to(rows.dtype), 1 - BETA)
    cols.lerp_(square.mean(-2, keepdim=True).to(cols.dtype), 1 - BETA)
    return u / (rows.sqrt().clamp_min(1e-8) * cols.sqrt().clamp_min(1e-8)).to(u.dtype)
