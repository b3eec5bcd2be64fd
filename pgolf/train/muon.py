"""Muon: momentum, then the nearest orthogonal matrix, for stacks of equal-shaped weights.

    buf <- mu buf + g                              accumulation, not an average
    u    = g + mu buf                              Nesterov
    u   <- u / (sqrt(r) sqrt(c)^T)                 Mousse: running mean squares of rows and columns (off)
    u   <- u / max(|u_row|, 1e-7)                  rows to unit norm (MuonEq-R, PR 1285)
    X    = NS(u)
    X   <- X / max(|X_row|, 1e-8)                  once more (NorMuon in the form of PR 1520; off)
    P   <- P - lr wd P, or P - lr wd clip(P, -d, d), d = c / sqrt(fan-in)   (Huber decay, PR 1807, after AdamHD)
    P   <- P - lr sqrt(max(1, rows / cols)) X

Newton-Schulz: X <- u / (|u|_F + 1e-7); repeat A = X X^T, X <- a X + (b A + c A A) X. Jordan et al. 2024; Polar
Express tuples: Amsel et al. 2025, PR 1787.

Huber decay pulls outliers less than the proportional decay does. The published NorMuon (a running second moment per
row) is not PR 1520's: the latter doubles the update of an up-projection and hardly changes the others. With
`row_norm` the row factor of Mousse cancels.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pgolf.train.config import LateConfig, MuonConfig
from pgolf.train.groups import layer_of

STANDARD = ((3.4445, -4.7750, 2.0315),)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
COEFFICIENTS = {"standard": STANDARD, "polar_express": POLAR_EXPRESS}
MOUSSE_BETA = 0.99


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


def unit_rows(u: Tensor, eps: float) -> Tensor:
    """Every row of u [..., m, n] divided by max(its norm, eps); the norm is taken in float32 or better."""
    wide = torch.promote_types(u.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(u, dim=-1, keepdim=True, dtype=wide)
    return u / norm.clamp_min(eps).to(u.dtype)


def precondition(u: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Mousse: take u [B, m, n] into its mean squares rows [B, m, 1] and cols [B, 1, n], then divide by their roots.

    r <- .99 r + .01 mean over columns of u^2, c likewise over rows, both from 1; denominators are at least 1e-8.
    """
    square = u.square()
    rows.lerp_(square.mean(-1, keepdim=True).to(rows.dtype), 1 - MOUSSE_BETA)
    cols.lerp_(square.mean(-2, keepdim=True).to(cols.dtype), 1 - MOUSSE_BETA)
    return u / (rows.sqrt().clamp_min(1e-8) * cols.sqrt().clamp_min(1e-8)).to(u.dtype)


def decay_(weights: Sequence[Tensor], amount: float, delta: float | None = None) -> None:
    """p <- p - amount p in place; with `delta`, p - amount clip(p, -delta, delta): the gradient of Huber's function."""
    if delta is None:
        torch._foreach_mul_(list(weights), 1 - amount)
    else:
        clipped = torch._foreach_clamp_max(torch._foreach_clamp_min(list(weights), -delta), delta)
        torch._foreach_add_(list(weights), clipped, alpha=-amount)


class Muon:
    """Batched by shape: one Newton-Schulz per stack of matrices with equal shape and learning rate."""

    def __init__(
        self,
        matrices: Mapping[str, nn.Parameter],
        config: MuonConfig,
        dtype: torch.dtype,
        late: LateConfig = LateConfig(),  # noqa: B008  frozen
    ) -> None:
        """`dtype` is that of the iteration: bfloat16 on CUDA, float32 on a CPU."""
        self.config, self.dtype = config, dtype
        self.stacks: dict[str, list[nn.Parameter]] = {}
        self.factors: dict[str, float] = {}
        for name, parameter in matrices.items():
            key, layer = "x".join(map(str, parameter.shape)), layer_of(name)
            if late.layer is not None and layer is not None and layer >= late.layer:
                key = f"{key}.late"
            self.stacks.setdefault(key, []).append(parameter)
            self.factors[key] = late.muon if key.endswith("late") else 1.0
        self.momentum = {key: self._zeros(stack) for key, stack in self.stacks.items()}
        self.squares: dict[str, Tensor] = {}
        if config.mousse:
            for key, buffer in self.momentum.items():
                self.squares[f"{key}.rows"] = torch.ones_like(buffer[..., :1], dtype=torch.float32)
                self.squares[f"{key}.cols"] = torch.ones_like(buffer[:, :1], dtype=torch.float32)

    def _zeros(self, stack: Sequence[nn.Parameter]) -> Tensor:
        low = self.config.momentum_dtype == "bfloat16"
        return torch.zeros_like(torch.stack(list(stack)), dtype=torch.bfloat16 if low else None)

    def direction(self, key: str, grad: Tensor, momentum: float) -> Tensor:
        """The orthogonal direction of a stack's gradient [B, m, n], which is overwritten; takes it into the state."""
        config = self.config
        buffer = self.momentum[key].mul_(momentum).add_(grad)
        update = grad.add_(buffer, alpha=momentum)
        if config.mousse:
            update = precondition(update, self.squares[f"{key}.rows"], self.squares[f"{key}.cols"])
        if config.row_norm:
            update = unit_rows(update, 1e-7)
        x = newton_schulz(update.to(self.dtype), config.ns_steps, COEFFICIENTS[config.newton_schulz])
        return unit_rows(x, 1e-8) if config.post_row_norm else x

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float = 1.0) -> None:
        """One update with the scheduled learning rate, momentum and factor on the decay; all gradients must exist."""
        for key, parameters in self.stacks.items():
            grad = torch.stack([parameter.grad for parameter in parameters])  # type: ignore[misc]
            x = self.direction(key, grad.to(self.momentum[key].dtype), momentum)
            rows, cols = parameters[0].shape
            weights: list[Tensor] = list(parameters)
            rate, huber = lr * self.factors[key], self.config.huber
            decay_(weights, rate * self.config.weight_decay * decay, huber and huber / cols**0.5)
            torch._foreach_add_(
                weights, list(x.to(weights[0].dtype).unbind()), alpha=-rate * max(1, rows / cols) ** 0.5
            )

    def state(self) -> dict[str, Tensor]:
        """The momentum buffers and mean squares, for a resumable state."""
        return self.momentum | self.squares
