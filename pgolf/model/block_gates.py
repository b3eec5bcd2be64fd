"""Gates beyond attention.

token gate (DTG of PR 549, off there): how much of a block's change each token takes,
    x_out <- x_in + sigmoid(w . stopgrad(x_in) + b) (x_out - x_in),   w [d] = 0, b = 2
MLP gate (option of PR 1667): the form of its attention-output gate on the MLP output, cut into H groups of D channels,
    m_h <- 2 sigmoid(W u[:window])_h m_h,   W [H, window] = 0;  u is the input of the MLP
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_gate(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x, the mixed input, and out [B, T, d]; weight [1, d], bias [1]."""
    gate = torch.sigmoid(F.linear(x.detach(), weight.to(x.dtype), bias.to(x.dtype)))
    return torch.lerp(x, out, gate)


def mlp_gate(m: Tensor, u: Tensor, weight: Tensor) -> Tensor:
    """m, u [B, T, d]; weight [H, window]."""
    gate = 2 * torch.sigmoid(F.linear(u[..., : weight.size(1)], weight.to(u.dtype)))
    groups = m.view(*m.shape[:-1], weight.size(0), -1)
    return (groups * gate.unsqueeze(-1)).flatten(-2)
