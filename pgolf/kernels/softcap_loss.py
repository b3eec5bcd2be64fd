"""Softcapped cross-entropy without float32 logits (PR 1787), loss and gradient in one pass over each row.

    y = C tanh(z / C) = 2 C sigma(2 z / C) - C,  z = h E^T       loss = log sum_j exp(y_j) - y_target
    dloss / dz_j = (exp(y_j) / sum - [j = target]) 4 sigma_j (1 - sigma_j) = r_j

C itself bounds y, so no maximum is sought. The product leaves z in the type of h; a program holds one row in registers
and writes r over it, so one matrix [tokens, vocabulary] is all that the head keeps. An upstream gradient g per token
scales rows, which commutes with both products that follow: dh = g (r E), dE = r^T (g h). Where all tokens have the same
g, as in a mean, the two are dh = r (g E) and dE = g (r^T h): no pass over tokens.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
COLUMNS_PER_WARP = 1024
"""Columns of a row that a warp holds: 32 values a thread."""
REGISTERS = 80
"""Of a thread: three rows of 8192 columns are on a multiprocessor at once, one read while another is computed."""


@triton.jit
def _exp2(x, PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    if PTX:  # one instruction; Triton's own scales, so as to keep subnormal results, which count for nothing here
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.exp2(x)


@triton.jit
def _sigma(z, inner, PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    below = 1.0 + _exp2(z * inner, PTX)
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [below], tl.float32, True, 1)
    return 1.0 / below


@triton.jit
def _loss_rows(  # type: ignore[no-untyped-def]
    logits, targets, losses, softcap, VOCAB: tl.constexpr, BLOCK: tl.constexpr, PTX: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns, first = tl.arange(0, BLOCK), logits + row * VOCAB
    target = tl.load(targets + row).to(tl.int32)
    z_target = tl.load(first + target).to(tl.float32)  # before the sums, at which all warps meet; then it is written
    z = tl.load(first + columns, mask=columns < VOCAB, other=0.0).to(tl.float32)
    inner, outer = -2.0 * LOG2_E / softcap, 2.0 * LOG2_E * softcap
    sigma = _sigma(z, inner, PTX)
    below = sigma - 1.0  # the multiple of it, not the difference of two, is exact where the cap is near
    powers = _exp2(below * outer, PTX)  # of y - C in bits
    if BLOCK > VOCAB:
        powers = tl.where(columns < VOCAB, powers, 0.0)
    total = tl.sum(powers)
    pulls = powers * (sigma * below)
    of_target = _sigma(z_target, inner, PTX)
    below_target = of_target - 1.0
    tl.store(losses + row, (tl.log2(total) - below_target * outer) / LOG2_E)
    share = -4.0 / total
    at_target = (_exp2(below_target * outer, PTX) * share + 4.0) * (of_target * below_target)
    tl.store(first + columns, tl.where(columns == target, at_target, pulls * share), mask=columns < VOCAB)


@torch.library.custom_op("pgolf::softcap_loss", mutates_args=())
def losses_and_residuals(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """hidden [N, d], embedding [V, d], targets int64 [N] to losses float32 [N], nats, and r [N, V] like hidden."""
    logits = hidden @ embedding.T
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    vocab = len(embedding)
    block = triton.next_power_of_2(vocab)
    warps = min(max(block // COLUMNS_PER_WARP, 1), 16)
    ptx = logits.device.type == "cuda"
    most = REGISTERS if block <= warps * COLUMNS_PER_WARP else None
    _loss_rows[(len(logits),)](logits, targets, losses, softcap, vocab, block, ptx, num_warps=warps, maxnreg=most)
    return losses, logits


@losses_and_residuals.register_fake
def _(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    return targets.new_empty(targets.shape, dtype=torch.float32), hidden.new_empty(len(hidden), len(embedding))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros in the place of r's gradient would be as long as the logits


def _gradients(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
    hidden, embedding, residuals = ctx.saved_tensors
    equal = upstream.stride(0) == 0 and hidden.dtype != torch.float16  # of whose range g E may be
    find = _gradients_of_equal if equal else _gradients_of_any
    d_hidden, d_embedding = find(hidden, embedding, residuals, upstream)
    return d_hidden.to(hidden.dtype), d_embedding.to(embedding.dtype), None, None


def _gradients_of_any(hidden: Tensor, embedding: Tensor, residuals: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    # Relative to the largest, so that nearly equal weights do not round the rows of hidden once more.
    largest = upstream.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    weighted = hidden * (upstream / largest)[:, None].to(hidden.dtype)
    return (residuals @ embedding) * upstream[:, None], (residuals.T @ weighted) * largest


def _gradients_of_equal(
    hidden: Tensor, embedding: Tensor, residuals: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    g = upstream[0]
    return residuals @ (embedding * g).to(hidden.dtype), (residuals.T @ hidden) * g


losses_and_residuals.register_autograd(_gradients, setup_context=_save)


def softcap_losses(hidden: Tensor, embedding: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Losses float32 like targets [B, T] of hidden [B, T, d] and embedding [V, d], which is cast to its type."""
    rows = hidden.flatten(0, 1)
    losses: Tensor = losses_and_residuals(rows, embedding.to(rows.dtype), targets.flatten(), softcap)[0]
    return losses.view_as(targets)
