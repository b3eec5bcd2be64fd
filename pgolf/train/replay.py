"""The forward and backward pass of a micro-batch as a CUDA graph: one launch in place of more than a thousand.

A graph belongs to shapes: of the rows, of their boundaries (`pgolf.data.batches` gives those in multiples of 64), and
of the model, which may run layers again. What is new runs eagerly first, which compiles every kernel, and is captured
when it comes again; both on a stream of their own. All graphs share their memory: none outlives what is done with its
gradients.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
        for place, given in zip(captured.inputs, inputs, strict=True):
            if place is not None and given is not None:
                place.copy_(given, non_blocking=True)
        captured.graph.replay()
        found = list(compress(zip(self.parameters, self.gradients, strict=True), captured.gives))
        for held, new in _by_type((p.grad, gradient) for p, gradient in found if p.grad is not None):
            torch._foreach_add_(held, new)
        fresh = [(p, gradient, torch.empty_like(gradient)) for p, gradient in found if p.grad is None]
        for held, new in _by_type((own, gradient) for _, gradient, own in fresh):  # the next replay writes over it
            torch._foreach_copy_(held, new)
        for parameter, _, own in fresh:
            parameter.grad = own
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
            pairs = zip(self.gradients, found, strict=True)
            for kept, given in _by_type((held, new) for held, new in pairs if new is not None):
                torch._foreach_copy_(kept, given)
        self._give(before)
        return Captured(graph, inputs, [each is not None for each in found])

    def _give(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def _by_type(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The firsts and the seconds of pairs of one type: of several, foreach functions launch a kernel each."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for first, second in pairs:
        firsts, seconds = groups.setdefault(first.dtype, ([], []))
        firsts.append(first)
        seconds.append(second)
    yield from groups.values()
