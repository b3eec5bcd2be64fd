"""The forward and backward pass of a micro-batch as a CUDA graph: one launch in place of more than a thousand.

A graph belongs to shapes: of the rows, of their boundaries (`pgolf.data.batches` gives those in multiples of 64), and
of the model, which may run layers again. What is new runs eagerly first, which compiles every kernel, and is captured
when it comes again; both on a stream of their own. All graphs share their memory: none outlives what is done with its
gradients. Those they add up in tensors that are theirs, which become the gradients of parameters, with what was there.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgolf.train.gradients import add, by_type

Inputs = tuple[Tensor | None, ...]


class Captured(NamedTuple):
    """A graph and the tensors that it reads."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs


class Replay:
    """`run(kind, *inputs)` adds to the gradients of `parameters` and returns a number [] in float32.

    Gradients of replayed runs are `gradients` themselves: what reads or adds them up must have done so, on this stream,
    before the next run. Those that were cleared begin at zero.
    """

    def __init__(self, run: Callable[..., Tensor], parameters: Sequence[nn.Parameter]) -> None:
        self.run, self.parameters = run, parameters
        self.given: dict[Hashable, list[bool]] = {}
        """Which parameters a run gave gradients, of all that ran."""
        self.graphs: dict[Hashable, Captured] = {}
        self.gradients = [torch.empty_like(parameter) for parameter in parameters]
        self.result = torch.empty((), device=parameters[0].device)
        self.stream = torch.cuda.Stream(self.result.device)  # type: ignore[no-untyped-call]

    def __call__(self, kind: Hashable, *inputs: Tensor | None) -> Tensor:
        """`run`, with inputs on the device. `kind` is what else than the shapes of its inputs tells two runs apart."""
        key = kind, *(None if tensor is None else tuple(tensor.shape) for tensor in inputs)
        if key not in self.given:
            before = [parameter.grad for parameter in self.parameters]
            for parameter in self.parameters:
                parameter.grad = None
            result = self._eager(kind, self._moved(inputs))
            self.given[key] = [parameter.grad is not None for parameter in self.parameters]
            add(self.parameters, before)
            return result
        self._hold(self.given[key])
        if key not in self.graphs:
            self.graphs[key] = self._capture(kind, self._moved(inputs))
        captured = self.graphs[key]
        for held, new in zip(captured.inputs, inputs, strict=True):
            if held is not None and new is not None:
                held.copy_(new, non_blocking=True)
        captured.graph.replay()
        return self.result.clone()

    def _moved(self, inputs: Inputs) -> Inputs:
        return tuple(None if each is None else each.to(self.result.device, non_blocking=True) for each in inputs)

    @torch.no_grad()
    def _hold(self, given: Sequence[bool]) -> None:
        """Have the gradients of these parameters where graphs add to them."""
        found = compress(zip(self.parameters, self.gradients, strict=True), given)
        others = [(parameter, held) for parameter, held in found if parameter.grad is not held]
        for group in by_type([held for parameter, held in others if parameter.grad is None]):
            torch._foreach_zero_(group)
        for parameter, held in others:
            if parameter.grad is not None:
                held.copy_(parameter.grad)  # of a run that was the first of its kind
            parameter.grad = held

    def _eager(self, kind: Hashable, inputs: Inputs) -> Tensor:
        current = torch.cuda.current_stream(self.result.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.run(kind, *inputs)
        current.wait_stream(self.stream)
        return result

    def _capture(self, kind: Hashable, inputs: Inputs) -> Captured:
        graph, pool = torch.cuda.CUDAGraph(), None
        if self.graphs:
            pool = next(iter(self.graphs.values())).graph.pool()
        before = [parameter.grad for parameter in self.parameters]
        with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
            self.result.copy_(self.run(kind, *inputs))
        kept = all(parameter.grad is held for parameter, held in zip(self.parameters, before, strict=True))
        assert kept, "the run replaced a gradient instead of adding to it: a graph would not"
        return Captured(graph, inputs)
