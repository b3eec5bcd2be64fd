"""Partial rotary position embedding: only the first r dimensions of each head rotate (PR 315).

inv_freq_k = base^(-2k/r), k = 0 .. r/2 - 1; dimension k pairs with k + r/2:
    (a, b) -> (a cos + b sin, -a sin + b cos).
Tables are float32: bfloat16 frequencies are off by up to 0.4 %, bfloat16 positions by whole tokens beyond 256.

For a context f = `rope_factor` times the one that the frequencies are meant for:
    ntk    base <- base f^(r / (r - 2)): the lowest frequency falls by f, the highest stays
    yarn   see `pgolf.model.yarn`
In the published programs f is the row's length over 1024 (PR 401, 549, 635) or 2048 (PR 1493) where that exceeds 1;
here it is a constant, so that packed rows and short windows rotate as in training.
"""

import torch
from torch import Tensor

from pgolf.model.config import ModelConfig

Tables = tuple[Tensor, Tensor]
"""cos and sin, each [T, r / 2]."""


def inverse_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians per token of each pair, [r / 2], float32."""
    r, base = config.rope_dims, config.rope_base
    if config.rope_scaling == "ntk":
        base *= config.rope_factor ** (r / (r - 2))
    exponent = torch.arange(0, r, 2, dtype=torch.float32, device=device) / r
    frequencies = base**-exponent
    if config.rope_scaling == "yarn":
        from pgolf.model.yarn import interpolate

        frequencies = interpolate(frequencies, config.rope_factor, config.rope_length)
    return frequencies


def rotary_tables(length: int, frequencies: Tensor) -> Tables:
    """cos and sin of positions 0 .. length - 1, each [length, r / 2], float32."""
    positions = torch.arange(length, dtype=torch.float32, device=frequencies.device)
    angles = torch.outer(positions, frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading dimensions of x [B, T, heads, D]; tables are [T, r / 2] in the dtype of x."""
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([a * cos + b * sin, b * cos - a * sin, rest], dim=-1)
