"""RMSNorm without weight: y = x / sqrt(mean(x^2) + eps) over the last axis.

eps is passed explicitly: the default of torch depends on its version, and with an embedding of std 0.005 the old one
would shrink the first normalised state to a sixteenth.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def rms_norm(x: Tensor) -> Tensor:
    """Normalise the last axis of x (..., n) to unit root mean square; same dtype as x."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _EagerRMSNorm.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    return F.rms_norm(x, (x.size(-1),), eps=EPS)


class _EagerRMSNorm(torch.autograd.Function):
    """The same with three passes over memory instead of eight: three times faster in eager mode on a CPU.

    dx = r (g - y mean(g y)), r = 1 / sqrt(mean(x^2) + eps).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = (norm.square() / x.size(-1) + EPS).rsqrt_()
        y: Tensor = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        saved: tuple[Tensor, Tensor] = ctx.saved_tensors
        (y, r), (g,) = saved, grads
        return torch.addcmul(g, y, (g * y).mean(-1, keepdim=True), value=-1).mul_(r)
