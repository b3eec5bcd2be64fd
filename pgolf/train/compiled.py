"""torch.compile part by part: the repeated block is compiled once for each of its kinds, not once a virtual layer.

Compiling the whole forward pass unrolls every layer, twice where recurrence is switched on in the middle of a run, and
takes minutes. What is lost is only fusion across block borders.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from pgolf.model.gpt import GPT

GRAPHS = 64
"""Most graphs of one function: kinds of block, with and without gradients, and lengths of a row."""


def compile_model(model: GPT, mode: str | None = None, backend: str | Callable[..., object] = "inductor") -> None:
    """Hide the functions of a model behind compiled ones, in place; weights and names stay."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    for owner, name in _parts(model):
        function = getattr(owner, name)
        if not getattr(function, "written_out", False):  # else there is nothing left to fuse: `pgolf.train.fused_model`
            setattr(owner, name, torch.compile(function, mode=mode, backend=backend))


def plain_model(model: GPT) -> None:
    """Undo `compile_model`: compiled code does not run the hooks that calibration sets."""
    for owner, name in _parts(model):
        vars(owner).pop(name, None)


def _parts(model: GPT) -> Iterator[tuple[nn.Module, str]]:
    for name in ("embed", "skip", "surprise"):
        yield model, name
    for block in model.blocks:
        yield block, "forward"
        yield block, "forward_lanes"
