"""The MLP of a block: y = down(f), f [B, T, F] the hidden units.

    leaky_relu2   f = LeakyReLU(slope)(up n)^2: p^2 for p > 0, (slope p)^2 otherwise, not monotone   PR 493, 549

The other activations, and factors in place of full matrices, stand in `pgolf.model.mlp_variants`. `norm_pct` drops
tokens from the hidden units while training (`pgolf.model.norm_pct`).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.linear import Linear


def leaky_relu_squared(p: Tensor, slope: float) -> Tensor:
    """LeakyReLU(slope)^2 (PR 493)."""
    return F.leaky_relu(p, slope).square()


class MLP(nn.Module):
    """down(LeakyReLU(slope)(up n)^2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slope = config.leaky_slope
        self.quantile = config.norm_pct
        self.fc: nn.Module
        self.proj: nn.Module
        if config.mlp_rank == 1:
            self.fc = Linear(config.dim, config.mlp_hidden)
        else:
            from pgolf.model.mlp_variants import LowRank

            self.fc = LowRank(config.dim, config.mlp_inner, config.mlp_hidden)
        if config.mlp_blocks == 1:
            self.proj = Linear(config.mlp_hidden, config.dim, zero=True)
        else:
            from pgolf.model.mlp_variants import BlockDiagonal

            self.proj = BlockDiagonal(config.mlp_hidden, config.dim, config.mlp_blocks)
        self.drop = None
        if config.norm_pct < 1:
            from pgolf.model.norm_pct import norm_pct_dropout

            self.drop = norm_pct_dropout

    def hidden(self, n: Tensor) -> Tensor:
        """n [B, T, d] to f [B, T, F]."""
        return leaky_relu_squared(self.fc(n), self.slope)

    def forward(self, n: Tensor) -> Tensor:
        """n [B, T, d] to [B, T, d]."""
        f = self.hidden(n)
        if self.drop is not None and self.training:
            f = self.drop(f, self.quantile)
        return self.proj(f)  # type: ignore[no-any-return]


def build_mlp(config: ModelConfig) -> MLP:
    """The MLP that `model.activation` names."""
    if config.activation == "leaky_relu2":
        return MLP(config)
    from pgolf.model.mlp_variants import StarReLU, SwiGLU

    return StarReLU(config) if config.activation == "star_relu" else SwiGLU(config)
