"""Low-rank adapters for the rows of a batch, one set per row and virtual layer, and their AdamW (PR 1530, 1855).

    y_b <- y_b + (alpha / r) B_b A_b x_b,   A [r, in] ~ uniform(+-1 / sqrt(in)),   B [out, r] = 0

on the linear maps q, k, v, o and mlp of each virtual layer (repeated layers have adapters of their own each time) and
on the head. AdamW as in torch, decay decoupled, on A and B alike; with beta1 = 0 there is no first moment.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.evaluate.config import LoRAConfig
from pgolf.model.gpt import GPT
from pgolf.model.visit import Adapter, Visit

Shapes = dict[str, tuple[int, int, int]]


def shapes(model: GPT, maps: Sequence[str]) -> Shapes:
    """Name of a map to (visits, in, out): how many adapters it has, and their sizes."""
    attention, dim = model.blocks[0].attn, model.config.dim
    visits = model.config.stack_runs * model.layers
    found = {
        "q": (visits, dim, attention.c_q.weight.size(0)),  # type: ignore[union-attr, operator]
        "k": (visits, dim, model.config.kv_dim),
        "v": (visits, dim, model.config.kv_dim),
        "o": (visits, dim, dim),
        "mlp": (visits, dim, dim),
        "head": (1, dim, model.tok_emb.num_embeddings),
    }
    return {name: shape for name, shape in found.items() if name in maps}


class Adapters:
    """The state of all rows: A [rows, visits, r, in], B [rows, visits, out, r] and the moments, at least float32."""

    def __init__(self, model: GPT, config: LoRAConfig, rows: int) -> None:
        self.config, self.dtype = config, model.dtype
        self.shapes, device = shapes(model, config.maps), model.tok_emb.weight.device
        self.visits = model.config.stack_runs * model.layers
        self.fresh = True
        r = config.rank
        sizes = [size for n, inputs, outputs in self.shapes.values() for size in ((n, r, inputs), (n, outputs, r))]
        kept = torch.promote_types(model.dtype, torch.float32)
        self.weights = [torch.zeros(rows, *size, device=device, dtype=kept) for size in sizes]  # A, B, A, B ...
        self.first = [torch.zeros_like(weight) for weight in self.weights] if config.beta1 else None
        self.second = [] if config.optimizer == "normalized" else [torch.zeros_like(weight) for weight in self.weights]

    def reset(self, seed: int) -> None:
        """Before a batch: B and the moments to zero; A is drawn with this seed, or kept with `warm_start`."""
        for tensor in [*self.weights[1::2], *(self.first or []), *self.second]:
            tensor.zero_()
        if self.fresh or not self.config.warm_start:
            generator = torch.Generator(self.weights[0].device).manual_seed(seed)
            for (_, inputs, _), weight in zip(self.shapes.values(), self.weights[::2], strict=True):
                bound = 1 / math.sqrt(inputs)
                weight.uniform_(-bound, bound, generator=generator)
        self.fresh = False

    def leaves(self, rows: slice) -> list[Tensor]:
        """The weights of some rows, as tensors to take gradients of."""
        return [weight[rows].requires_grad_() for weight in self.weights]

    def visit(self, leaves: Sequence[Tensor], remember: bool = False) -> list[Visit]:
        """One visit for each virtual layer and one for the head, which compute with the leaves."""
        scale, found = self.config.alpha / self.config.rank, [dict[str, Adapter]() for _ in range(self.visits + 1)]
        for name, a, b in zip(self.shapes, leaves[::2], leaves[1::2], strict=True):
            for place, pair in enumerate(zip(a.unbind(1), (b * scale).unbind(1), strict=True)):
                dtype = a.dtype if name == "head" else self.dtype
                down, up = (factor.to(dtype, copy=True) for factor in pair)  # no views: see compiled.py
                found[self.visits if name == "head" else place][name] = down, up
        return [Visit(adapters, remember, self.weights[0].dtype) for adapters in found]

    def step(self, rows: slice, gradients: Sequence[Tensor], number: int) -> None:
        """Step `number`, from 1, of the rows' optimizer."""
        for index, gradient in enumerate(gradients):
            if not self.second:
                from pgolf.evaluate.normalized import normalized

                normalized(self.weights[index][rows], gradient, self.config)
                continue
            first = self.first[index][rows] if self.first else None
            adamw(self.weights[index][rows], gradient, first, self.second[index][rows], number, self.config)

    def decay(self, row: int, steps: int) -> None:
        """What steps without gradient do to A of a row whose document has ended: only the weight decay."""
        for weight in self.weights[::2]:
            weight[row] *= (1 - self.config.lr * self.config.weight_decay) ** steps


@torch.no_grad()
def adamw(
    weight: Tensor, gradient: Tensor, first: Tensor | None, second: Tensor, number: int, config: LoRAConfig
) -> None:
    """One step in place (Loshchilov and Hutter 2019), all tensors of one shape; `number` counts from 1.

    The correction of the second moment, c = sqrt(1 - beta2^t), stands in rate and eps: g / (v / c + eps) is
    c g / (v + c eps), which is one pass over memory less.
    """
    correction = math.sqrt(1 - config.beta2**number)
    second.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
    if first is not None:
        gradient = first.lerp_(gradient, 1 - config.beta1) / (1 - config.beta1**number)
    root = second.sqrt().add_(config.eps * correction)
    weight.mul_(1 - config.lr * config.weight_decay).addcdiv_(gradient, root, value=-config.lr * correction)
