"""The weight matrices of a block as its products read them, made once a forward pass instead of at every use.

    Wqkv = [Wq; Wk; Wv]        Wo' = diag(a) Wo        W2' = diag(m) W2        in the type of the activations
    read = [Wqkv; W]           W of the narrow gate, 0 beyond its window, in rows of a multiple of 16

Folding the channel scales a and m saves the passes that would multiply by them, and their gradients need no outputs:
with G = g^T z, the gradient of Wo',  dWo = diag(a) G  and  da_c = sum_k Wo_ck G_ck.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pgolf.kernels.float8 import Eighth, round_weight, transposed
from pgolf.kernels.gated_output import GATE_COLUMNS
from pgolf.model.blocks import Block


class Weights(NamedTuple):
    """Of one block, width d, F hidden units."""

    qkv: Tensor
    """[(H + 2 Hkv) D, d]."""
    read: Tensor
    """All that reads a norm of the stream, for its gradient; Wqkv is its first rows."""
    out: Tensor
    """[d, d]."""
    up: Tensor
    """[F, d]."""
    down: Tensor
    """[d, F]."""
    eight: "Eight | None" = None
    """Some in float8."""


class Eight(NamedTuple):
    """The matrices that are read in float8."""

    qkv: Eighth
    up: Eighth
    down: Eighth
    up_across: Eighth
    """W1^T, for the gradient."""
    down_across: Eighth
    """W2'^T."""


def matrix(layer: nn.Module) -> nn.Parameter:
    """Its weight."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


class Folded:
    """Keeps the matrices of a block for one forward pass; version counters would not do, fused AdamW leaves them."""

    def __init__(self, block: Block) -> None:
        attn, mlp = block.attn, block.mlp
        self.sources = (
            attn.c_q.weight, attn.c_k.weight, attn.c_v.weight, attn.proj.weight, matrix(mlp.fc), matrix(mlp.proj),
            block.attn_scale, block.mlp_scale,
        )  # fmt: skip
        self.gate = attn.attn_gate_w if attn.gate is not None else None
        self.number = -1
        self.weights: Weights | None = None

    @torch.no_grad()
    def __call__(self, dtype: torch.dtype, number: int, eight: bool = False) -> Weights:
        """The matrices in `dtype` for the forward pass of that number, and in float8 too."""
        if self.weights is None or number != self.number:
            query, key, value, out, up, down, a, m = self.sources
            gate = [] if self.gate is None else [_widened(self.gate, out.size(1))]
            read = torch.cat([query, key, value, *gate]).to(dtype)
            self.number, self.weights = number, Weights(
                read[: len(query) + 2 * len(key)], read, (a[:, None] * out).to(dtype), up.to(dtype),
                (m[:, None] * down).to(dtype),
            )  # fmt: skip
            if eight:
                found = self.weights
                qkv8, up8, down8 = (round_weight(w) for w in (found.qkv, found.up, found.down))
                in8 = Eight(qkv8, up8, down8, transposed(up8), transposed(down8))
                self.weights = found._replace(eight=in8)
        return self.weights


def _widened(gate: Tensor, width: int) -> Tensor:
    return functional.pad(gate, (0, width - gate.size(1), 0, -len(gate) % GATE_COLUMNS))


def unfold(folded: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a matrix and of the scale of its rows from that of their product, which is overwritten."""
    of_scale = torch.linalg.vecdot(folded, weight.to(folded.dtype))
    return folded.mul_(scale[:, None]), of_scale


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """g^T x [out, in] of g [T, out] and x [T, in]: float32 sums, not rounded to their type on CUDA."""
    if g.device.type == "cuda" and g.dtype == torch.bfloat16:
        return torch.mm(g.T, x, out_dtype=torch.float32)
    return (g.T @ x).float()
