"""Shared value embedding VE128 (PR 374, 401, 414, 549): a second token embedding, added to the values of late layers.

    v <- v + c_l s P E[ids]   on the flat values, before the heads are split, hence before XSA

One table E [V, dim] ~ N(0, .01^2), one projection P [Hkv D, dim] and one factor s serve all layers that use it; c_l = 1
is learned per layer. P starts orthogonal, as in `pgolf.model.hash_embedding`.
"""

import torch
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.linear import Linear

STD = 0.01


class ValueEmbedding(nn.Module):
    """s P E[ids]."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        own = config.value_embed
        self.embed = nn.Embedding(vocab_size, own.dim, _weight=torch.randn(vocab_size, own.dim) * STD)
        self.proj = Linear(own.dim, config.kv_dim, gain=own.gain)
        self.factor = nn.Parameter(torch.tensor(own.scale))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """ids [B, T] to [B, T, Hkv D]."""
        return self.factor.to(dtype) * self.proj(self.embed(ids).to(dtype))  # type: ignore[no-any-return]
