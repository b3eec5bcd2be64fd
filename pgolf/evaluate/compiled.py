"""Compiled adaptation: rows and widths change with every chunk, so the graphs take any (torch.compile, dynamic shapes).

The update of the shared weights stays eager: other gradients would need other graphs, for little work.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from pgolf.model.gpt import GPT

GRAPHS = 64
"""Most graphs of one function: kinds of block, with and without gradients, with and without a memory."""


@contextlib.contextmanager
def compiled(model: GPT, backend: str | None) -> Iterator[None]:
    """Within, blocks and head are compiled by this back end of torch.compile; None: nothing happens."""
    if backend is None:
        yield
        return
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    parts: list[tuple[nn.Module, str]] = [(model, "surprise")]
    parts += [(block, name) for block in model.blocks for name in ("forward", "forward_lanes")]
    try:
        for owner, name in parts:
            setattr(owner, name, torch.compile(getattr(owner, name), dynamic=True, backend=backend))
        yield
    finally:
        for owner, name in parts:
            vars(owner).pop(name, None)
