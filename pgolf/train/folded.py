"""The weight matrices of a block as its products read them, made once a forward pass instead of at every use.

    Wqkv = [Wq; Wk; Wv]        Wo' = diag(a) Wo        W2' = diag(m) W2        in the type of the activations
    read = [Wqkv; W]           W of the narrow gate, 0 beyond its window, in rows of a multiple of 16

Folding the channel scales a and m saves the passes that would multiply by them, and their gradients need no outputs:
with G = g^T z, the gradient of Wo',  dWo = diag(a) G  and  da_c = sum_k Wo_ck G_ck.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pgolf.kernels.float8 import Eighth
from pgolf.kernels.folding import Matrices, fold, fold_and_round
from pgolf.kernels.gated_output import GATE_COLUMNS

if TYPE_CHECKING:
    from pgolf.train.fused_call import Parameters


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


@torch.no_grad()
def folded(p: "Parameters", dtype: torch.dtype, eight: bool = False) -> Weights:
    """The matrices in `dtype`, and in float8 too."""
    gate_rows = 0 if p.gate is None else -(-len(p.gate) // GATE_COLUMNS) * GATE_COLUMNS
    matrices = Matrices(p.query, p.key, p.value, p.gate, p.up, p.out, p.down)
    given, eighths = (matrices, gate_rows, p.attn_scale, p.mlp_scale, dtype), None
    if eight:
        (read, up, out, down), rounded = fold_and_round(*given)
        eighths = Eight(*rounded)
    else:
        read, up, out, down = fold(*given)
    return Weights(read[: len(p.query) + 2 * len(p.key)], read, out, up, down, eighths)


def weight_gradient(g: Tensor, x: Tensor, total: Tensor | None = None) -> Tensor:
    """g^T x [out, in] of g [T, out] and x [T, in]: float32 sums, not rounded to their type on CUDA; added to `total`,
    in place, where it is given.
    """
    if g.device.type == "cuda" and g.dtype == torch.bfloat16:
        if total is None:
            return torch.mm(g.T, x, out_dtype=torch.float32)
        return torch.addmm(total, g.T, x, out_dtype=torch.float32, out=total)
    found = (g.T @ x).float()
    return found if total is None else total.add_(found)
