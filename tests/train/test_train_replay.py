"""Micro-batches replayed add up gradients as those that run do; the graph is a stand-in that runs them again."""

import contextlib

import pytest
import torch
from torch import nn

from pgolf.train.replay import Replay


class Graph:
    """Of CUDA's graphs, what `Replay` uses."""

    again = None

    def pool(self):
        return 0

    def replay(self):
        self.again()


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: contextlib.nullcontext())
    monkeypatch.setattr(Replay, "_eager", lambda self, kind, inputs: self.run(kind, *inputs))
    capture = Replay._capture

    def captured(self, kind, inputs):
        found = capture(self, kind, inputs)

        def again():
            kept = [parameter.grad for parameter in self.parameters]
            self._give([None] * len(kept))
            self.result.copy_(self.run(kind, *inputs))
            for held, parameter in zip(self.gradients, self.parameters, strict=True):
                if parameter.grad is not None:
                    held.copy_(parameter.grad)
            self._give(kept)

        found.graph.again = again
        return found

    monkeypatch.setattr(Replay, "_capture", captured)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("cleared", [False, True], ids=["added up", "taken after each"])
def test_gradients_add_up_like_those_of_backward(cleared):
    first, second = (nn.Parameter(torch.randn(3, dtype=dtype)) for dtype in (torch.float64, torch.float32))

    def run(kind, x, other):
        loss = (first * x).pow(kind).sum() + (0 if other is None else (second * other).sum())
        loss.backward()
        return loss.detach().float()

    replayed, taken, expected = Replay(run, [first, second]), [], []
    inputs = [(kind, torch.randn(3, dtype=torch.float64), other) for kind in (2, 3) for other in (None, torch.ones(3))]
    for function, found in ((replayed, taken), (run, expected)):
        first.grad = second.grad = None
        for each in [each for each in inputs for _ in range(4)]:
            loss = function(*each)
            found.append((loss.clone(), first.grad, second.grad))
            if cleared:
                first.grad = second.grad = None
        found.append((first.grad, second.grad))
    assert len(replayed.kinds) == 4
    for ours, theirs in zip(taken, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b)
