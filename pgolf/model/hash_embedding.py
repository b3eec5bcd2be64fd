"""BigramHash and TrigramHash: an embedding of the last n tokens through a hashed table (PR 65, 180, 401, 549, 635).

    e_t = s P E[h_t],   h_t = XOR_k(m_k ids_(t-k)) mod (rows - 1) for t >= n - 1, else rows - 1

added to the token embedding before its norm; E [rows, dim] starts at zero, s is a learned scalar. P [d, dim] starts
orthogonal: the modules of those programs write zero, and a later pass over all projections overwrites it. With both at
zero nothing would ever start. Documents are not masked: the hash of a BOS reads the token before it. Dropped with the
larger vocabularies of PR 1218.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.config import HashConfig
from pgolf.model.linear import Linear

BIGRAM = (36_313, 27_191)
TRIGRAM = (36_313, 27_191, 51_497)
"""Multipliers of the current token, the one before it, and so on; products stay below 2^31 for 16-bit tokens here,
as 64-bit integers, and for vocabularies up to 41,000 in the published 32-bit arithmetic."""


def hash_rows(ids: Tensor, multipliers: tuple[int, ...], rows: int) -> Tensor:
    """ids int64 [B, T] to rows of the table [B, T]."""
    n, length = len(multipliers), ids.size(1)
    mixed = torch.zeros_like(ids[:, n - 1 :])
    for back, multiplier in enumerate(multipliers):
        mixed = mixed ^ (multiplier * ids[:, n - 1 - back : length - back])
    return F.pad(mixed % (rows - 1), (min(n - 1, length), 0), value=rows - 1)


class HashEmbedding(nn.Module):
    """s P E[h(ids)]."""

    def __init__(self, config: HashConfig, multipliers: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.multipliers, self.rows = multipliers, config.rows
        self.embed = nn.Embedding(config.rows, config.dim, _weight=torch.zeros(config.rows, config.dim))
        self.proj = Linear(config.dim, width, gain=config.gain)
        self.factor = nn.Parameter(torch.tensor(config.scale))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """ids [B, T] to [B, T, d]."""
        e = self.embed(hash_rows(ids, self.multipliers, self.rows)).to(dtype)
        return self.factor.to(dtype) * self.proj(e)  # type: ignore[no-any-return]
