"""Micro-batches replayed add up gradients as those that run do; the graph is a stand-in that runs them again."""

import contextlib

import pytest
import torch
from torch import nn

from pgolf.train.gradients import add
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
        """A capture computes nothing; what is replayed works on the very tensors that there were."""
        places, values = [p.grad for p in self.parameters], [g.clone() for g in self.gradients]
        found = capture(self, kind, inputs)
        for gradient, value in zip(self.gradients, values, strict=True):
            gradient.copy_(value)

        def again():
            now = [p.grad for p in self.parameters]
            give(self.parameters, places)
            self.result.copy_(self.run(kind, *inputs))
            give(self.parameters, now)

        found.graph.again = again
        return found

    monkeypatch.setattr(Replay, "_capture", captured)


def give(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def copies(*tensors):
    return tuple(None if tensor is None else tensor.clone() for tensor in tensors)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("limit", [None, 0.5], ids=["all", "clipped"])
@pytest.mark.parametrize("cleared", [0, 1, 3], ids=["added up", "taken after each", "taken after three"])
def test_gradients_add_up_like_those_of_backward(cleared, limit):
    torch.manual_seed(0)
    first, second = (nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2))

    def run(kind, x, other):
        before = [first.grad, second.grad]
        first.grad = second.grad = None
        loss = (first * x).pow(kind).sum() + (0 if other is None else (second * other).sum())
        loss.backward()
        add([first, second], before, limit and torch.tensor(limit))
        return loss.detach().float()

    replayed, taken, expected = Replay(run, [first, second]), [], []
    inputs = [(kind, torch.randn(3, dtype=torch.float64), other) for kind in (2, 3) for other in (None, torch.ones(3))]
    for function, found in ((replayed, taken), (run, expected)):
        first.grad = second.grad = None
        for count, each in enumerate([*inputs, *inputs[::-1], *inputs, *inputs, *inputs[::-1]]):
            found.append(copies(function(*each), first.grad, second.grad))
            if cleared and count % cleared == 0:
                first.grad = second.grad = None
    assert len(replayed.graphs) == 4
    assert all(any(given) for given in replayed.given.values())
    for ours, theirs in zip(taken, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.allclose(a, b)


@pytest.mark.usefixtures("on_cpu")
def test_a_run_adds_to_gradients_of_others():
    weight = nn.Parameter(torch.ones(2))

    def run(kind, x):
        (weight * x).sum().backward()
        return torch.zeros(())

    replayed = Replay(run, [weight])
    for _ in range(3):
        theirs = weight.grad = torch.tensor([5.0, 7.0])
        replayed(0, torch.tensor([1.0, 2.0]))
        assert weight.grad.tolist() == [6.0, 9.0]
    assert theirs.tolist() == [5.0, 7.0]  # a graph adds in its own place


@pytest.mark.usefixtures("on_cpu")
def test_sums_begin_at_zero_by_type(monkeypatch):
    """torch zeroes tensors of several types one by one."""
    parameters = [nn.Parameter(torch.ones(2, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16) * 2]
    seen, zero = [], torch._foreach_zero_

    def zero_(tensors):
        seen.append([each.dtype for each in tensors])
        zero(tensors)

    monkeypatch.setattr(torch, "_foreach_zero_", zero_)
    replay = Replay(lambda kind: torch.zeros(()), parameters)
    for held in replay.gradients:
        held.fill_(3)
    replay._hold([True, True, True, False])
    assert sorted(map(str, seen)) == ["[torch.bfloat16]", "[torch.float32, torch.float32]"]
    assert [held.tolist() for held in replay.gradients] == [[0, 0]] * 3 + [[3, 3]]
    assert [p.grad is held for p, held in zip(parameters, replay.gradients, strict=True)] == [True] * 3 + [False]


@pytest.mark.parametrize("limit", [0.5, 50.0])
def test_gradients_of_two_types_are_clipped_by_their_common_norm(limit):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(8, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    for parameter in parameters:
        parameter.grad = torch.randn(8).to(parameter.dtype)
    grads = [parameter.grad.double() for parameter in parameters]
    norm = torch.cat(grads).norm()
    add(parameters, [None, None], torch.tensor(limit))
    for parameter, grad in zip(parameters, grads, strict=True):
        assert parameter.grad.dtype == parameter.dtype
        torch.testing.assert_close(parameter.grad.double(), grad * min(1, limit / norm), rtol=2**-7, atol=0)
