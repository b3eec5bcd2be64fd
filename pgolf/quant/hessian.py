"""Input covariances of every weight matrix in one full-precision pass: H = sum over batches of X^T X / batches.

X [tokens, n] is what the matrix multiplies. Recurrent layers add every pass to the same physical matrix; the tied
embedding takes the final state, as output head (PR 1394). q, k and v share one input, hence one Hessian.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgolf.model.gpt import GPT, matrix_inputs

if TYPE_CHECKING:
    from pgolf.data.batches import Batch

OUTPUT, LOOKUP = ".G", ".B"
"""What follows a matrix's name in the keys of its sensitivities (`pgolf.quant.sensitivity`), in the same file."""


@torch.no_grad()
def collect_hessians(
    model: GPT, batches: "Iterator[Batch]", count: int, report: Callable[[int], None] = lambda _: None
) -> dict[str, Tensor]:
    """Hessians [n, n], float32, by the name of the module whose input they describe (see `matrix_inputs`)."""
    device = model.tok_emb.weight.device
    sums: dict[str, Tensor] = {}

    def tap(name: str) -> Callable[..., None]:
        def accumulate(_: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            if name not in sums:
                sums[name] = torch.zeros(x.size(1), x.size(1), device=device)
            sums[name].addmm_(x.mT, x)

        return accumulate

    sources = sorted(set(matrix_inputs(model.config).values()))
    hooks = [model.get_submodule(name).register_forward_pre_hook(tap(name)) for name in sources]
    try:
        for index in range(count):
            model(next(batches).inputs.to(device))
            report(index + 1)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / count).cpu() for name, total in sums.items()}
