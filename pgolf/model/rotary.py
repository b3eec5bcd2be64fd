"""Partial rotary position embedding: only the first r dimensions of each head rotate (PR 315).

inv_freq_k = base^(-2k/r), k = 0 .. r/2 - 1; dimension k pairs with k + r/2:
    (a, b) -> (a cos + b sin, -a sin + b cos).
Tables are float32: bfloat16 frequencies are off by up to 0.4 %, bfloat16 positions by whole tokens beyond 256.
"""

import torch
from torch import Tensor


def rotary_tables(length: int, dims: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, dims / 2], float32."""
    exponent = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, base**-exponent)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of x [B, T, heads, D]; tables are [T, r / 2] in the dtype of x."""
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)
