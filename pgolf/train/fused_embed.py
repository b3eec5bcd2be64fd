"""`GPT.embed` written out: one pass of `pgolf.kernels.embedding` forward, another for its gradient."""

from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.embedding import Smear, embed_backward, embed_forward
from pgolf.model.gpt import GPT


class Embed(torch.autograd.Function):
    """ids [B, T], the table [V, d], and of a smear its gate [1, window], strength [1] and `Smear.bos`, to x0 [B, T, d]
    of a type.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, dtype: torch.dtype, ids: Tensor, table: Tensor, *smear: Any
    ) -> Tensor:
        ids, table = ids.contiguous(), table.contiguous()
        x0, inverse, opened = embed_forward(ids, table, Smear(*smear) if smear else None, dtype)
        ctx.save_for_backward(ids, table, inverse, opened, *smear[:2])
        ctx.bos = smear[2:]
        return x0

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        ids, table, inverse, opened, *parameters = ctx.saved_tensors
        smear = Smear(*parameters, *ctx.bos) if parameters else None
        of_table, *of_smear = embed_backward(upstream[0].contiguous(), ids, table, smear, inverse, opened)
        return None, None, of_table, *(of_smear if smear else []), *(None for _ in ctx.bos)


def embed(model: GPT, ids: Tensor) -> Tensor:
    """`GPT.embed` of a model of the form (`pgolf.train.fast.fits_embedding`)."""
    smear: tuple[Any, ...] = ()
    if model.window_smear is not None:
        from pgolf.model.smear import BOS

        smear = model.smear_gate.weight, model.smear_lambda, BOS if model.config.smear_mask else -1
    x0: Tensor = Embed.apply(model.dtype, ids, model.tok_emb.weight, *smear)  # type: ignore[no-untyped-call]
    return x0
