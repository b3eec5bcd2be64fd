"""A matrix without bias."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T without bias; the float32 weight [out, in] is cast to the dtype of x at the point of use."""

    def __init__(self, inputs: int, outputs: int, zero: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        if not zero:  # OrthoInit: for every projection but those that write to the residual, which start at zero
            nn.init.orthogonal_(self.weight, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return F.linear(x, self.weight.to(x.dtype))
