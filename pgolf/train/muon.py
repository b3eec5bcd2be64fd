"""Muon: momentum, then the nearest orthogonal matrix, for stacks of equal-shaped weights.

    buf <- mu buf + g                  accumulation, not an average
    u    = g + mu buf                  Nesterov
    u   <- u / max(|u_row|, 1e-7)      rows to unit norm (MuonEq-R, PR 1285)
    X    = NS(u)
    P   <- P (1 - lr wd) - lr sqrt(max(1, rows / cols)) X

Newton-Schulz: X <- u / (|u|_F + 1e-7); repeat A = X X^T, X <- a X + (b A + c A A) X. Jordan et al. 2024; Polar
Express tuples: Amsel et al. 2025, PR 1787.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pgolf.train.config import MuonConfig

STANDARD = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
COEFFICIENTS = {"standard": STANDARD, "polar_express": POLAR_EXPRESS}


def newton_schulz(u: Tensor, steps: int, coefficients: tuple[tuple[float, float, float], ...] = STANDARD) -> Tensor:
    """Push the singular values of every matrix in u [B, m, n] towards 1; the last tuple serves all further steps."""
    tall = u.size(-2) > u.size(-1)
    x = u.mT if tall else u
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Batched by shape: one Newton-Schulz per stack of equal-shaped matrices."""

    def __init__(self, matrices: Mapping[str, nn.Parameter], config: MuonConfig, dtype: torch.dtype) -> None:
        """`dtype` is that of the iteration: bfloat16 on CUDA, float32 on a CPU."""
        self.config, self.dtype = config, dtype
        self.stacks: dict[str, list[nn.Parameter]] = {}
        for parameter in matrices.values():
            self.stacks.setdefault("x".join(map(str, parameter.shape)), []).append(parameter)
        self.momentum = {shape: torch.zeros_like(torch.stack(list(stack))) for shape, stack in self.stacks.items()}

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """One update with the scheduled learning rate and momentum; every matrix must have a gradient."""
        for shape, parameters in self.stacks.items():
            grad = torch.stack([parameter.grad for parameter in parameters])  # type: ignore[misc]
            buffer = self.momentum[shape].mul_(momentum).add_(grad)
            update = grad.add_(buffer, alpha=momentum)
            if self.config.row_norm:
                update /= update.norm(dim=-1, keepdim=True).clamp_min(1e-7)
            x = newton_schulz(update.to(self.dtype), self.config.ns_steps, COEFFICIENTS[self.config.newton_schulz])
            rows, cols = parameters[0].shape
            weights: list[Tensor] = list(parameters)
            torch._foreach_mul_(weights, 1 - lr * self.config.weight_decay)
            torch._foreach_add_(weights, list(x.to(grad.dtype).unbind()), alpha=-lr * max(1, rows / cols) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """The momentum buffers, for a resumable state."""
        return dict(self.momentum)
