"""Muon: momentum, then the nearest orthogonal matrix, for stacks of equal-shaped weights.

    buf <- mu buf + g                              accumulation, not an average
    u    = g + mu buf                              Nesterov
    u   <- u / (sqrt(r) sqrt(c)^T)                 Mousse (`pgolf.train.mousse`; off)
    u   <- u / max(|u_row|, 1e-7)                  rows to unit norm (MuonEq-R, PR 1285)
    X    = NS(u)
    X   <- X / max(|X_row|, 1e-8)                  once more (NorMuon in the form of PR 1520; off)
    P   <- P - lr wd P, or P - lr wd clip(P, -d, d), d = c / sqrt(fan-in)   (Huber decay, PR 1807, after AdamHD)
    P   <- P - lr sqrt(max(1, rows / cols)) X

Newton-Schulz: X <- u / (|u|_F + 1e-7); repeat A = X X^T, X <- (a I + b A + c A A) X. Jordan et al. 2024; Polar
Express tuples: Amsel et al. 2025, PR 1787.

Huber decay pulls outliers less than the proportional decay does. The published NorMuon (a running second moment per
row) is not PR 1520's: the latter doubles the update of an up-projection and hardly changes the others. With
`row_norm` the row factor of Mousse cancels.

Of several processes each has an equal share of every stack, filled up with zeros, which stay zeros: it takes the sum
of the gradients of its share, and all get the directions of all (Parallel Muon, PR 399 on).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pgolf import ranks
from pgolf.train.config import LateConfig, MuonConfig
from pgolf.train.gradients import descend
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
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)  # renamed in torch 2.13
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


def newton_schulz(u: Tensor, steps: int, coefficients: tuple[tuple[float, float, float], ...] = STANDARD) -> Tensor:
    """Push the singular values of every matrix in u [B, m, n] towards 1; the last tuple serves all further steps."""
    tall = u.size(-2) > u.size(-1)
    x = u.mT if tall else u
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        gram.diagonal(0, 1, 2).add_(a)  # as a term of its own it would be read and added once more
        x = torch.bmm(gram, x)
    return x.mT if tall else x


def unit_rows(u: Tensor, eps: float) -> Tensor:
    """Every row of u [..., m, n] divided by max(its norm, eps); the norm is taken in float32 or better."""
    wide = torch.promote_types(u.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(u, dim=-1, keepdim=True, dtype=wide)
    return u / norm.clamp_min(eps).to(u.dtype)


def filled(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices of one shape as a stack [B, m, n], zeros added up to a multiple of the number of processes."""
    missing = -len(matrices) % ranks.world()
    return torch.stack([*matrices, *[torch.zeros_like(matrices[0])] * missing])


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
        self.own: dict[str, Tensor] = {}
        self.works: dict[str, dist.Work] = {}
        self.squares: dict[str, Tensor] = {}
        if config.mousse:
            from pgolf.train.mousse import first_squares

            self.squares = first_squares(self.momentum)

    def share(self, key: str) -> slice:
        """The matrices of a stack that are this process's; at the end of a stack some of them may be filling."""
        size = -(-len(self.stacks[key]) // ranks.world())
        return slice(ranks.rank() * size, (ranks.rank() + 1) * size)

    def _zeros(self, stack: Sequence[nn.Parameter]) -> Tensor:
        low = self.config.momentum_dtype == "bfloat16"
        return torch.zeros_like(filled(stack), dtype=torch.bfloat16 if low else None)

    def direction(self, key: str, grad: Tensor, momentum: float) -> Tensor:
        """The orthogonal direction of the share's gradient [B, m, n], which is overwritten; takes it into the state."""
        config, share = self.config, self.share(key)
        buffer = self.momentum[key][share]
        torch.add(grad, buffer, alpha=momentum, out=buffer)
        update = grad.add_(buffer, alpha=momentum)
        if config.mousse:
            from pgolf.train.mousse import precondition

            update = precondition(update, self.squares[f"{key}.rows"][share], self.squares[f"{key}.cols"][share])
        if config.row_norm:
            update = unit_rows(update, 1e-7)
        x = newton_schulz(update.to(self.dtype), config.ns_steps, COEFFICIENTS[config.newton_schulz])
        return unit_rows(x, 1e-8) if config.post_row_norm else x

    @torch.no_grad()
    def launch(self) -> None:
        """Start to add up the gradients of all processes, the largest stack first; all of them must exist."""
        for key in self._largest_first():
            grads = filled([parameter.grad for parameter in self.stacks[key]])  # type: ignore[misc]
            self.own[key] = torch.empty_like(grads[self.share(key)])
            self.works[key] = _reduce_scatter(self.own[key], grads, async_op=True)

    def summed(self, key: str) -> Tensor:
        """The summed gradients of this process's share, which may be changed."""
        if (work := self.works.pop(key, None)) is not None:
            work.wait()
        return self.own[key]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, decay: float = 1.0) -> None:
        """One update with the scheduled learning rate, momentum and factor on the decay; all gradients must exist."""
        arriving = [(key, *self._arriving(key, momentum)) for key in self._largest_first()]
        for key, x, work in arriving:
            if work is not None:
                work.wait()
            parameters = self.stacks[key]
            rows, cols = parameters[0].shape
            weights: list[Tensor] = list(parameters)
            rate, shrink, stretch = lr * self.factors[key], self.config.weight_decay * decay, max(1, rows / cols) ** 0.5
            if self.config.huber:
                from pgolf.train.huber import decay_

                decay_(weights, rate * shrink, self.config.huber / cols**0.5)
                shrink = 0
            x = x[: len(weights)].contiguous().to(weights[0].dtype)
            descend(weights, list(x), rate * stretch, shrink / stretch)

    def _arriving(self, key: str, momentum: float) -> tuple[Tensor, dist.Work | None]:
        """The directions of a whole stack, and what to wait for before they are read."""
        if ranks.world() == 1:
            grad = torch.empty_like(self.momentum[key])
            torch._foreach_copy_(list(grad), [parameter.grad for parameter in self.stacks[key]])  # type: ignore[misc]
            return self.direction(key, grad, momentum), None
        x = self.direction(key, self.summed(key).to(self.momentum[key].dtype), momentum)
        whole = x.new_empty(self.momentum[key].shape)
        return whole, _all_gather(whole, x.contiguous(), async_op=True)

    def _largest_first(self) -> list[str]:
        return sorted(self.stacks, key=lambda key: -self.momentum[key].numel())

    def gathered(self) -> dict[str, Tensor]:
        """The momentum buffers and mean squares of all processes, for a resumable state; all must call it."""
        state = {}
        for key, stack in self.stacks.items():
            for name in (key, f"{key}.rows", f"{key}.cols") if self.squares else (key,):
                held = self.momentum[key] if name == key else self.squares[name]
                if ranks.world() > 1:
                    _all_gather(held, held[self.share(key)].clone())
                state[name] = held[: len(stack)]
        return state
