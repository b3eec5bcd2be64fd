"""Gradients of a block's parameters, summed over its visits of a pass before autograd sees them.

A layer that runs v times a pass has v gradients for each of its parameters. Here every visit adds to the same sums,
those of the matrices inside the product that makes them, G += g^T x, and what is to be done with a sum is done once:

    source = []         parameters to a token that all visits of the pass read
    visit               leaves its part of the gradients in `Sums`, and gives the token none
    backward of source  runs after all those visits: from `Sums` to gradients of the parameters

So autograd's own order of nodes counts the visits. One without a gradient adds nothing, and every forward pass has
sums of its own, which are gone with its graph.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.folding import unfold
from pgolf.train.folded import Weights, folded, weight_gradient
from pgolf.train.fused_call import Parameters


class Sums:
    """Of one block and one pass, by the names of `pgolf.train.folded.Weights` and `Parameters`."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.found: dict[str, Tensor] = {}

    def product(self, name: str, g: Tensor, x: Tensor) -> None:
        """Adds g^T x [out, in] of g [N, out] and x [N, in]."""
        self.found[name] = weight_gradient(g, x, self.found.get(name))

    def add(self, name: str, gradient: Tensor) -> None:
        """Adds a gradient that is the caller's own."""
        held = self.found.get(name)
        self.found[name] = gradient if held is None else held.add_(gradient)

    def gradients(self) -> Parameters | None:
        """What the sums are of the parameters, None where there are none. Rows of one matrix stay its rows: autograd
        takes them as they are.
        """
        found, p = self.found, self.parameters
        self.found = {}
        if not found:
            return None
        out, down = found["out"], found["down"]
        attn_scale, mlp_scale = unfold((out, down), (p.out, p.down), (p.attn_scale, p.mlp_scale))
        read, gate = found["read"], None
        counts = [len(p.query), len(p.key), len(p.value)]
        query, key, value, rest = torch.split(read, [*counts, len(read) - sum(counts)])
        if p.gate is not None:
            gate = rest[: len(p.gate), : p.gate.size(1)]
        up, gain, mix = found["up"], found["gain"], found["mix"]
        return Parameters(query, key, value, out, up, down, gain, gate, attn_scale, mlp_scale, mix)


class Source(torch.autograd.Function):
    """Sums and their parameters to the token [], of which only the place in the graph is of use."""

    @staticmethod
    def forward(ctx: Any, sums: Sums, *parameters: Tensor | None) -> Tensor:  # noqa: D102
        ctx.sums = sums
        ctx.set_materialize_grads(False)
        return sums.parameters.query.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple[Tensor | None, ...]:  # noqa: D102
        gradients = ctx.sums.gradients()
        return None, *(gradients or [None] * len(Parameters._fields))


class Opened(NamedTuple):
    """A block in one pass."""

    weights: Weights
    sums: Sums
    token: Tensor


def opened(parameters: Parameters, dtype: torch.dtype, eight: bool) -> Opened:
    """For a pass that begins; activations are of `dtype`."""
    sums = Sums(parameters)
    token: Tensor = Source.apply(sums, *parameters)  # type: ignore[no-untyped-call]
    return Opened(folded(parameters, dtype, eight), sums, token)
