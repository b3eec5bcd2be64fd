"""SmearGate with a gate per channel (PR 65, 162, 401, 549, 635).

    y_t = (1 - g) * x_t + g * x_(t-1),   g = sigmoid(gate),   x_(-1) = 0

In PR 401, 549 and 635 it follows the norm of the embedding and starts at g = 0.5; in PR 65 it precedes it and starts at
0.05 (written there with the opposite sign). None of them masks documents: with `mask`, g = 0 where ids_t is BOS.
"""

import torch
from torch import Tensor, nn

BOS = 1


class VectorSmear(nn.Module):
    """The gates [d] as logits."""

    def __init__(self, dim: int, start: float, mask: bool) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((dim,), start))
        self.mask = mask

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        """x [B, T, d] of the tokens ids [B, T]."""
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        gate = torch.sigmoid(self.gate).to(x.dtype)
        if self.mask:
            gate = gate * (ids[..., None] != BOS)
        return torch.lerp(x, before, gate)
