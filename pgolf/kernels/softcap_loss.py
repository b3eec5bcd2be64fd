"""Softcapped cross-entropy without float32 logits (PR 1787), loss and gradient in one pass over each row.

    y = C tanh(z / C) = 2 C sigma(2 z / C) - C,  z = h E^T       loss = log sum_j exp(y_j) - y_target
    dloss / dz_j = (exp(y_j) / sum - [j = target]) 4 sigma_j (1 - sigma_j) = r_j

C itself bounds y, so no maximum is sought. The product leaves z in the type of h; a program holds one row in registers
and writes r over it, so one matrix [tokens, vocabulary] is all that the head keeps. An upstream gradient g per token
scales rows, which commutes with both products that follow: dh = g (r E), dE = r^T (g h).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
COLUMNS_PER_WARP = 1024
"""Columns of a row that a warp holds: 32 values a thread."""


@triton.jit
def _loss_rows(logits, targets, losses, softcap, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    place, inside = logits + row * VOCAB + columns, columns < VOCAB
    z = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    sigma = 1.0 / (1.0 + tl.exp2(z * (-2.0 * LOG2_E / softcap)))
    below = (sigma - 1.0) * (2.0 * LOG2_E * softcap)  # y - C, in bits
    powers = tl.where(inside, tl.exp2(below), 0.0)
    total = tl.sum(powers)
    is_target = columns == tl.load(targets + row)
    tl.store(losses + row, (tl.log2(total) - tl.sum(tl.where(is_target, below, 0.0))) / LOG2_E)
    share = powers * (1.0 / total) - tl.where(is_target, 1.0, 0.0)
    tl.store(place, share * (4.0 * sigma * (1.0 - sigma)), mask=inside)


@torch.library.custom_op("pgolf::softcap_loss", mutates_args=())
def losses_and_residuals(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """hidden [N, d], embedding [V, d], targets int64 [N] to losses float32 [N], nats, and r [N, V] like hidden."""
    logits = hidden @ embedding.T
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    vocab = len(embedding)
    block = triton.next_power_of_2(vocab)
    warps = min(max(block // COLUMNS_PER_WARP, 1), 16)
    _loss_rows[(len(logits),)](logits, targets, losses, softcap, vocab, block, num_warps=warps)
    return losses, logits


@losses_and_residuals.register_fake
def _(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    return targets.new_empty(targets.shape, dtype=torch.float32), hidden.new_empty(len(hidden), len(embedding))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    hidden, embedding, residuals = ctx.saved_tensors
    # Relative to the largest, so that a mean's equal weights do not round the rows of hidden once more.
    largest = upstream.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    weighted = hidden * (upstream / largest)[:, None].to(hidden.dtype)
    d_hidden = (residuals @ embedding) * upstream[:, None]
    d_embedding = (residuals.T @ weighted) * largest
    return d_hidden.to(hidden.dtype), d_embedding.to(embedding.dtype), None, None


losses_and_residuals.register_autograd(_gradients, setup_context=_save)


def softcap_losses(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Losses float32 like targets [B, T] of hidden [B, T, d] and embedding [V, d], which is cast to its type."""
    rows = hidden.flatten(0, 1)
    losses: Tensor = losses_and_residuals(rows, embedding.to(rows.dtype), targets.flatten(), softcap)[0]
    return losses.view_as(targets)
