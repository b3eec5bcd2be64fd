"""The forward and backward pass of a micro-batch as a CUDA graph: one launch in place of more than a thousand.

A graph belongs to shapes: of the rows, of their boundaries (`pgolf.data.batches` gives those in multiples of 64), and
of the model, which may run layers again. What is new runs eagerly first, which compiles every kernel, and is captured
when it comes again; both on a stream of their own. All graphs share their memory: none outlives what is done with its
gradients.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor | None, ...]


class Captured(NamedTuple):
    """A graph, the tensors that it reads, and which parameters it gives gradients."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    gives: list[bool]


class Replay:
    """`run(kind, *inputs)` adds to the gradients of `parameters` and returns a number [] in float32."""

    def __init__(self, run: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self.run, self.parameters = run, parameters
        self.kinds: dict[Hashable, Captured | None] = {}
        self.gradients = [torch.empty_like(parameter) for parameter in parameters]
        self.result = torch.empty((), device=parameters[0].device)
        self.stream = torch.cuda.Stream(self.result.device)  # type: ignore[no-untyped-call]

    def __call__(self, kind: Hashable, *inputs: Tensor | None) -> Tensor:
        """`run`, with inputs on the device. `kind` is what else than the shapes of its inputs tells two runs apart."""
        key = kind, *(None if tensor is None else tuple(tensor.shape) for tensor in inputs)
        captured = self.kinds.get(key)
        if captured is None:
            moved = tuple(None if each is None else each.to(self.result.device, non_blocking=True) for each in inputs)
            if key not in self.kinds:
                self.kinds[key] = None
                return self._eager(kind, moved)
            captured = self.kinds[key] = self._capture(kind, moved)
        for held, new in zip(captured.inputs, inputs, strict=True):
            if held is not None and new is not None:
                held.copy_(new, non_blocking=True)
        captured.graph.replay()
        found = list(compress(zip(self.parameters, self.gradients, strict=True), captured.gives))
        pairs = [(parameter.grad, gradient) for parameter, gradient in found if parameter.grad is not None]
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))
        for parameter, gradient in found:
            if parameter.grad is None:
                parameter.grad = gradient.clone()  # the next replay writes over it
        return self.result.clone()

    def _eager(self, kind: Hashable, inputs: Inputs) -> Tensor:
        current = torch.cuda.current_stream(self.result.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.run(kind, *inputs)
        current.wait_stream(self.stream)
        return result

    def _capture(self, kind: Hashable, inputs: Inputs) -> Captured:
        graph, earlier = torch.cuda.CUDAGraph(), [each.graph for each in self.kinds.values() if each is not None]
        pool = earlier[0].pool() if earlier else None
        before = [parameter.grad for parameter in self.parameters]
        self._give([None] * len(before))
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            self.result.copy_(self.run(kind, *inputs))
            found = [parameter.grad for parameter in self.parameters]
            pairs = [(held, new) for held, new in zip(self.gradients, found, strict=True) if new is not None]
            torch._foreach_copy_(*map(list, zip(*pairs, strict=True)))  # type: ignore[arg-type]
        self._give(before)
        return Captured(graph, inputs, [each is not None for each in found])

    def _give(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
