"""Compiled adaptation: one graph per kind of block for all numbers of rows and tokens (torch.compile, dynamic shapes).

A graph holds for inputs of one form: which of them take gradients, which are views of what, and every size that is not
marked as free. So all calls get one form here: no views, a stream that takes a gradient also where nothing needs it (in
the first layer), and two free sizes. A model of record 1855 has three graphs then: block, block with two lanes, and
head with loss.

The update of the shared weights stays eager: other gradients would need other graphs, for little work.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf.evaluate.config import EvaluateConfig
from pgolf.model.context import Context
from pgolf.model.gpt import GPT

if TYPE_CHECKING:
    from pgolf.model.visit import Visit

GRAPHS = 64
"""Most graphs of one function: kinds of block, with and without gradients, with and without a memory."""
OPTIONS = {"emulate_precision_casts": True}
"""Of inductor. Round to bfloat16 wherever eager mode does: halves the distance of adapted losses from eager ones."""


Backend = str | Callable[..., Any] | None
"""Of torch.compile; None: eager mode."""


def back_end(config: EvaluateConfig, device: torch.device) -> Backend:
    """Inductor on CUDA, unless `compile` is off."""
    return "inductor" if config.compile and device.type == "cuda" else None


@contextlib.contextmanager
def compiled(model: GPT, backend: Backend) -> Iterator[None]:
    """Within, blocks and head are compiled."""
    if backend is None:
        yield
        return
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    options: Any = OPTIONS if backend == "inductor" else None
    parts: list[tuple[nn.Module, str]] = [(model, "surprise")]
    parts += [(block, name) for block in model.blocks for name in ("forward", "forward_lanes")]
    try:
        for owner, name in parts:
            fast = torch.compile(getattr(owner, name), backend=backend, options=options)
            setattr(owner, name, partial(_head if name == "surprise" else _block, fast))
        yield
    finally:
        for owner, name in parts:
            vars(owner).pop(name, None)


def _block(fast: Callable[..., Any], stream: Any, *rest: Any) -> Any:
    """A compiled `forward` (stream, context) or `forward_lanes` (lanes, rows, context)."""
    *rows, context = rest
    assert isinstance(context, Context)
    assert context.visit is not None
    _free_adapters(context.visit)
    cos, sin = (_free(table.clone(), 0) for table in context.tables)
    context = context._replace(x0=_free(context.x0.detach(), 0, 1), scale=context.scale.clone(), tables=(cos, sin))
    stream = _stream(stream) if isinstance(stream, Tensor) else type(stream)(*map(_stream, stream))
    return fast(stream, *(tuple(weight.clone() for weight in row) for row in rows), context)


def _head(fast: Callable[..., Tensor], hidden: Tensor, targets: Tensor, visit: "Visit") -> Tensor:
    """A compiled `surprise`."""
    _free_adapters(visit)
    return fast(_stream(hidden), _free(targets, 0, 1), visit)


def _stream(x: Tensor) -> Tensor:
    """x [B, T, d], of any numbers of rows and tokens, no view, and with a gradient."""
    if x.requires_grad:
        return _free(x.clone() if x._is_view() else x, 0, 1)
    return _free(x.detach().requires_grad_(), 0, 1)


def _free_adapters(visit: "Visit") -> None:
    for pair in visit.adapters.values():
        for factor in pair:
            _free(factor, 0)
    if visit.past is not None:
        k, v = visit.past
        visit.past = _free(k.detach(), 0, 1), _free(v.detach(), 0, 1)


def _free(tensor: Tensor, *sizes: int) -> Tensor:
    """The tensor, of which these sizes may vary from call to call."""
    for size in sizes:
        torch._dynamo.maybe_mark_dynamic(tensor, size)
    return tensor
