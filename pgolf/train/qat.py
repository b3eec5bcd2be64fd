"""Late quantization-aware training with a straight-through gradient (PR 315, 401, 635).

    s_row = max(max |w_row|, least_max) / c,  c = 2^(bits - 1) - 1
    w^    = clip(round(w / s_row), -c - 1, c) s_row          from -c with `symmetric`
    forward with w + stopgrad(w^ - w), so dL/dw = dL/dw^

As the gradient passes unchanged, it is the gradient at w^: the weights are exchanged for w^ before the forward
passes of a step and put back before its update. The compiled graph never learns of it. In the published programs the
switch was a class attribute that the graph had baked in at its first trace, and the branch was dead code (PR 315,
1032); in those with parameter banks no matrix of a block passed through it at all (549, 635).

`least_max` 1 is the published floor of the scale, 1 / 31: it exceeds the maximum of most rows, so the grid is coarse.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pgolf.train.config import QatConfig


def fake_quantize(w: Tensor, config: QatConfig) -> Tensor:
    """w [..., rows, cols] rounded to the grid of each row, in the same type."""
    top: int = 2 ** (config.bits - 1) - 1
    scale = w.abs().amax(-1, keepdim=True).clamp_min(max(config.least_max, 1e-12)) / top
    return (w / scale).round().clamp(-top if config.symmetric else -top - 1, top) * scale


@contextlib.contextmanager
def fake_quantized(stacks: Iterable[Sequence[Tensor]], config: QatConfig) -> Iterator[None]:
    """Inside, the matrices hold their rounded values, afterwards their own; `stacks` are groups of equal shape."""
    kept = []
    for stack in stacks:
        weights = [weight.detach() for weight in stack]
        originals = torch.stack(weights)
        kept.append((weights, originals))
        torch._foreach_copy_(weights, list(fake_quantize(originals, config).unbind()))
    try:
        yield
    finally:
        for weights, originals in kept:
            torch._foreach_copy_(weights, list(originals.unbind()))
