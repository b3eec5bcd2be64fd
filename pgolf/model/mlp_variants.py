"""Other MLPs, none of them in a record.

star_relu     f = a relu(up n)^2 + b, a = 1 and b = 0 learned per hidden unit     PR 401's author
swiglu        f = silu(up n) * (gate n), two thirds of the hidden units           PR 401's author: +.0045 BPB
star_swiglu   f = relu(up n)^2 * (gate n)                                         PR 401's author (Frugendorff v4)
low rank      up = V U, U: d -> r d, V: r d -> F                                  PR 2071's study (structured FFN):
blocks        down maps block i of the hidden units to block i of the output,         +.04 to +.05 BPB
              b blocks, F / b -> d / b each
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.linear import Linear
from pgolf.model.mlp import MLP


class StarReLU(MLP):
    """down(a relu(up n)^2 + b)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.star_scale = nn.Parameter(torch.ones(config.mlp_hidden))
        self.star_bias = nn.Parameter(torch.zeros(config.mlp_hidden))

    def hidden(self, n: Tensor) -> Tensor:
        """n [B, T, d] to f [B, T, F]."""
        squared = F.relu(self.fc(n)).square()
        return torch.addcmul(self.star_bias.to(n.dtype), squared, self.star_scale.to(n.dtype))


class SwiGLU(MLP):
    """down(act(up n) * (gate n)), act silu or relu^2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = Linear(config.dim, config.mlp_hidden)
        self.star = config.activation == "star_swiglu"

    def hidden(self, n: Tensor) -> Tensor:
        """n [B, T, d] to f [B, T, F]."""
        p, gate = self.fc(n), self.gate(n)
        f: Tensor = gate * (F.relu(p).square() if self.star else F.silu(p))
        return f


class LowRank(nn.Module):
    """V U x."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.u = Linear(inputs, inner)
        self.v = Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return self.v(self.u(x))  # type: ignore[no-any-return]


class BlockDiagonal(nn.ModuleList):
    """Block i of the output from block i of the input; zero at first."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__(Linear(inputs // blocks, outputs // blocks, zero=True) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return torch.cat([block(part) for block, part in zip(self, x.chunk(len(self), dim=-1), strict=True)], dim=-1)
