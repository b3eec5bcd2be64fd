"""A gated skip of the U-Net within the passes of the block that reads what it makes: no pass of its own, no ds.

    x' = g x + (1 - g) (w s),  g = sigmoid(gate)        in the block's first pass        `pgolf.kernels.residual_norm`
    d, the gradient of x', is made in the epilogue of the block's last product, and there:
        dx = g d                                        the only one that is stored      `pgolf.kernels.stream_products`
        ds = (1 - g) w d = ratio dx,                    ratio = w (1 - g) / g = w exp(-gate)
        dw = (1 - g) S,  S = sum_t d s;                 dgate = g (1 - g) sum_t d (x - w s) = (1 - g) (sum_t d x' - w S)

In lanes x' is lane 0. Where they have just been split x is lane 1 as well, whose gradient is added to dx in the last
product of the MLP's half; ds is made of dx as it was before.

The contract for s, an encoder block's input that its function returned as an alias (`pgolf.train.fused_stack`): what is
sent back for the alias is dx, and `ratio`, left in that block's `Branch` on the way forward, says what it is to be
multiplied by. The block does so where it adds it to the gradient of its input. At the first skip s is x, which has no
other reader: dx = (g + (1 - g) w) d, and no ratio.

Sums of all skips of a pass become gradients at once, as those of blocks do (`pgolf.train.visits`).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.residual_norm import Skip

LEAST_GATE = -40.0
"""A gate below it counts as this, in both passes: dx must hold what ds is made of, in the range of its numbers."""


class Branch:
    """What an encoder block is to multiply by what is sent back for the alias of its input."""

    def __init__(self, ones: Tensor) -> None:
        self.ratio = ones
        """[d], float32; ones but where a skip within a block reads the alias."""


class Joins:
    """The skips of one pass; w and gates [n, d]."""

    def __init__(self, weights: Tensor, gates: Tensor) -> None:
        self.weights, self.gates = weights.detach(), gates.detach().clamp(min=LEAST_GATE)
        self.g, self.rest = torch.sigmoid(self.gates), torch.sigmoid(-self.gates)
        self.ratio = self.weights * torch.exp(-self.gates)
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def gradients(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Of w and gates, None where no skip has left its sums."""
        found, self.found = self.found, {}
        if not found:
            return None, None
        nothing = (torch.zeros_like(self.rest[0]),) * 2
        rows = [found.get(row, nothing) for row in range(len(self.rest))]
        of_joined, of_s = torch.stack([each for kind in zip(*rows, strict=True) for each in kind]).chunk(2)
        return self.rest * of_s, self.rest * torch.addcmul(of_joined, self.weights, of_s, value=-1.0)


class Source(torch.autograd.Function):
    """w and gates to the token []; runs backward after all blocks that read it."""

    @staticmethod
    def forward(ctx: Any, joins: Joins, weights: Tensor, gates: Tensor) -> Tensor:  # noqa: D102
        ctx.joins = joins
        ctx.set_materialize_grads(False)
        return weights.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        return None, *ctx.joins.gradients()


def opened(weights: Tensor, gates: Tensor) -> tuple[Joins, Tensor]:
    """For a pass that begins, with the token that its blocks read."""
    joins = Joins(weights, gates)
    return joins, Source.apply(joins, weights, gates)  # type: ignore[no-untyped-call]


class Join(NamedTuple):
    """One skip, as the block is told of it."""

    joins: Joins
    row: int
    """Of w and gates."""
    same: bool
    """s is x."""

    def first(self, s: Tensor | None) -> Skip:
        """For the first pass."""
        return Skip(s, self.joins.weights[self.row], self.joins.gates[self.row])

    def share(self) -> Tensor:
        """dx / d [d]."""
        g, row = self.joins.g[self.row], self.row
        return torch.addcmul(g, self.joins.rest[row], self.joins.weights[row]) if self.same else g

    def ratio(self) -> Tensor:
        """ds / dx [d], where s is not x."""
        return self.joins.ratio[self.row]

    def add(self, of_joined: Tensor, of_s: Tensor) -> None:
        """The sums of d x' and of d s [d]; a stack that runs again has the same skips."""
        held = self.joins.found.get(self.row)
        self.joins.found[self.row] = (of_joined, of_s) if held is None else (held[0] + of_joined, held[1] + of_s)
