"""Loop positions (Frugendorff, PR 401's author): which repeat this is, as a learned vector [d] added to the stream.

Started as rows of an orthonormal set times 0.01, or as N(0, 0.01^2).
"""

import torch
from torch import Tensor, nn

SIZE = 0.01


def loop_positions(runs: int, dim: int, kind: str) -> Tensor:
    """Initial vectors [runs, d]."""
    vectors = torch.empty(runs, dim)
    return nn.init.orthogonal_(vectors, SIZE) if kind == "orthogonal" else vectors.normal_(std=SIZE)
