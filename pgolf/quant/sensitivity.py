"""How much the loss of a token rises by an error in a matrix: the Fisher information of its outputs.

A matrix with inputs x [n] and outputs y = W x [m] is quantized with an error E [m, n]. In second order, with the
covariances of inputs and of gradients taken as independent (K-FAC, Martens and Grosse 2015),

    loss rises by 1/2 tr(G E H E^T) nats per token,   H = sum x x^T / batches,   G = E[g g^T] / tokens per batch

g = dL/dy for a label drawn from the model's own distribution (so no label is read), summed over the passes of a
recurrent layer. For the tied embedding G is diagonal, E[p (1 - p) z'^2] with the probability p of a token and z' the
slope of the softcap; as a lookup its row i raises the loss by 1/2 B_i |E_i|^2, B_i = sum over the tokens i of
mean_j (dL/dx_j)^2 / (mean_j w_ij^2 tokens), x = norm(w_i).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pgolf.data.batches import Batch
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.hessian import LOOKUP, OUTPUT

TOKENS = 16_384
"""Of one backward pass; bounds memory."""


def collect_sensitivities(
    model: GPT,
    batches: Iterator[Batch],
    count: int,
    tokens_per_batch: int,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """G [m, m] of every block matrix, G [V] and B [V] of the embedding, float32, by `NAME` + `.G` or `.B`.

    tokens_per_batch: tokens behind a batch of the Hessians, whose scale is 1 / batches.
    """
    sums: dict[str, Tensor] = {}
    device = model.tok_emb.weight.device
    generator = torch.Generator(device).manual_seed(0)
    names = [name for name in matrix_inputs(model.config) if name != "tok_emb.weight"]
    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_full_backward_hook(_tap(sums, name + OUTPUT))
        for name in names
    ]
    tokens = 0
    try:
        for index in range(count):
            ids = next(batches).inputs.to(device)
            for part in torch.split(ids, max(1, TOKENS // ids.size(1))):
                _pass(model, part, sums, generator)
                tokens += part.numel()
            report(index + 1)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (total / (tokens * (tokens_per_batch if name.endswith(OUTPUT) else 1))).float().cpu()
        for name, total in sums.items()
    }


def _tap(sums: dict[str, Tensor], key: str) -> Callable[..., None]:
    def accumulate(_module: object, _inputs: object, outputs: tuple[Tensor, ...]) -> None:
        g = outputs[0].flatten(0, -2).float()
        sums[key] = sums[key] + g.mT @ g if key in sums else g.mT @ g

    return accumulate


def _pass(model: GPT, ids: Tensor, sums: dict[str, Tensor], generator: torch.Generator) -> None:
    """Gradients of the losses of ids [B, T] with labels from the model; adds to `sums`."""
    entered: list[Tensor] = []
    embed = model.embed

    def watched(ids: Tensor) -> Tensor:
        entered.append(embed(ids).detach().requires_grad_())
        return entered[0]

    model.embed = watched  # type: ignore[method-assign]
    try:
        with torch.enable_grad():
            logits = model(ids).flatten(0, 1)
    finally:
        del model.embed
    p = logits.detach().softmax(-1)
    slope = 1 - (logits.detach() / model.config.softcap).square()
    _add(sums, "tok_emb.weight" + OUTPUT, (p * (1 - p) * slope.square()).sum(0, dtype=torch.float64))
    labels = torch.multinomial(p, 1, generator=generator)
    total = -logits.log_softmax(-1).gather(1, labels).sum()
    (gradient,) = torch.autograd.grad(total, entered)  # what a matrix receives on the way, its hook sees
    energy = gradient.flatten(0, 1).float().square().mean(1).double()
    rows = model.tok_emb.weight.detach().float().square().mean(1).clamp_min(1e-12)
    per_row = torch.zeros(len(rows), dtype=torch.float64, device=rows.device).index_add_(0, ids.flatten(), energy)
    _add(sums, "tok_emb.weight" + LOOKUP, per_row / rows)


def _add(sums: dict[str, Tensor], key: str, value: Tensor) -> None:
    sums[key] = sums[key] + value if key in sums else value
