"""Skips and the end of the stack: passes against double precision, whole models against plain ones."""

import collections
from types import SimpleNamespace

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

import test_kernel_block as blocks
from test_kernel_block import small  # noqa: F401  a fixture
from test_kernel_passes import SIZES, assert_near, doubles, random

from pgolf.kernels import epilogue, final_norm, residual_norm, skip
from pgolf.model.config import ValueEmbedConfig
from pgolf.model.norm import EPS
from pgolf.train import fused_stack, skips
from pgolf.train.fused_block import SequentialBlock

ON_GPU = torch.cuda.is_available()
INTERPRETED = pytest.mark.skipif(ON_GPU, reason="the interpreter runs without a GPU")
DEEP = {"layers": 7, "parallel_from": 5}  # with recurrence four encoder layers, four skips, two of them in lanes


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("branched", [True, False])
def test_skip(tokens, width, dtype, bound, gated, same, branched):
    torch.manual_seed(0)
    x, s, d, branch = (random(tokens, width, dtype=dtype) for _ in range(4))
    weight, gate = random(width), random(width)
    a, b, w, v = doubles(x, x if same else s, weight, gate)
    g = torch.sigmoid(v)
    joined = g * a + (1 - g) * (w * b) if gated else a + w * b
    given = x, None if same else s, weight, gate if gated else None
    assert_near([skip.skip_forward(*given)], [joined], bound)
    of_a, of_b, *wanted = torch.autograd.grad(joined, [a, b, w, *([v] if gated else [])], d.double())
    found = skip.skip_backward(d, *given, branch if branched else None)
    into_x = of_a + (of_b if same else 0) + (branch.double() if branched else 0)
    assert_near([each for each in found if each is not None], [into_x, *([] if same else [of_b]), *wanted], bound)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("same", [True, False])
def test_the_head_of_a_block_makes_the_skip_before_it(tokens, width, dtype, bound, same):
    torch.manual_seed(0)
    x, s, x0 = (random(tokens, width, dtype=dtype) for _ in range(3))
    weight, gate, mix, scale = random(width), random(width), random(2, width), random(1).square()[0]
    made = residual_norm.Skip(None if same else s, weight, gate)
    found = residual_norm.norm_forward(x, scale, x0, mix, unit=False, skip=made)
    a, b, first, w, v, (one, two) = (each.double() for each in (x, x if same else s, x0, weight, gate, mix))
    g = torch.sigmoid(v)
    joined = g * a + (1 - g) * (w * b)
    h = one * joined + two * first
    inverse = torch.rsqrt(h.square().mean(1) + EPS)
    wanted = [joined, h, inverse, scale.double() * inverse]
    assert_near([found.x, found.h, found.inverse, found.factor], wanted, bound)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("lanes", [True, False])
def test_final_norm(tokens, width, dtype, bound, lanes):
    torch.manual_seed(0)
    first, second, dy = (random(tokens, width, dtype=dtype) for _ in range(3))
    streams = (first, second) if lanes else (first,)
    inside = doubles(*streams)
    expected = F.rms_norm(sum(inside) / len(inside), (width,), eps=EPS)
    y, inverse = final_norm.final_forward(*streams)
    assert_near([y], [expected], bound)
    found = final_norm.final_backward(dy, y, inverse, lanes)
    assert_near([found] * len(streams), torch.autograd.grad(expected, inside, dy.double()), bound)


@INTERPRETED
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "changes",
    [
        DEEP, DEEP | {"skips": "plain", "parallel_from": 4}, DEEP | {"parallel": "merge"},
        DEEP | {"parallel": "none", "parallel_from": None, "loop_runs": 1, "stack_runs": 2},
        {"parallel_from": 1, "loop_runs": 1, "skips": "plain"}, {"value_embed": ValueEmbedConfig(last=1, dim=8)},
    ],
    ids=["gated", "plain", "both lanes", "twice", "unjoined", "last plain"],
)  # fmt: skip
@pytest.mark.parametrize("epilogues", [False, True])
def test_models_train_alike(changes, epilogues, monkeypatch):
    monkeypatch.setattr(epilogue, "present", lambda: epilogues)
    monkeypatch.setattr(blocks.elements, "PLACE", 0)
    model, twin = blocks.write_out(blocks.build(**changes)), blocks.build(**changes)
    blocks.assert_alike(blocks.gradients(model), blocks.gradients(twin))
    assert not kept(model)


def kept(model):
    branches = model.blocks[0].forward.__self__.chain.branches
    return [*branches.kept, *branches.rows, *(branches.joins or [])]


@INTERPRETED
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "deeper",
    [{}, {"parallel_from": 6}, {"parallel_from": 4}, {"layers": 9, "parallel_from": None, "parallel": "none"}],
    ids=["lanes", "last skip", "all skips", "none"],
)
@pytest.mark.parametrize("runs", [1, 2])
def test_skips_within_blocks_train_alike_whatever_their_parameters(deeper, runs, monkeypatch):
    """Gates far from 0 on both sides, weights of both signs and 0; none has a pass of its own."""
    monkeypatch.setattr(epilogue, "present", lambda: True)
    monkeypatch.setattr(blocks.elements, "PLACE", 0)
    alone, made = [], fused_stack.skip_forward
    monkeypatch.setattr(fused_stack, "skip_forward", lambda *given: alone.append(given) or made(*given))
    found = []
    for prepare in (blocks.write_out, lambda model: model):
        model = prepare(blocks.build(**DEEP | deeper))
        model.runs = runs
        with torch.no_grad():
            torch.manual_seed(2)
            model.skip_gates.copy_(torch.empty_like(model.skip_gates).uniform_(-5.0, 5.0))
            model.skip_weights.normal_()
            model.skip_weights[:, ::3] = 0.0
        found.append(blocks.gradients(model))
    assert_alike_by_row(*found)
    assert not alone


def assert_alike_by_row(found, expected):
    """A row is a skip: that of one must not hide behind that of another."""
    blocks.assert_alike(found, expected)
    for name in ("skip_weights", "skip_gates"):
        rows = [each[1][name] for each in (found, expected)]
        assert ((rows[0] - rows[1]).norm(dim=1) <= 1e-4 * rows[1].norm(dim=1)).all(), name


@INTERPRETED
@pytest.mark.usefixtures("small")
def test_a_skip_within_a_block_takes_nothing_but_its_share_to_the_encoder(monkeypatch):
    """Where a gate is all but shut s is not lost, nor is any number; where it is wide open it is gone."""
    monkeypatch.setattr(epilogue, "present", lambda: True)
    monkeypatch.setattr(blocks.elements, "PLACE", 0)
    for value in (-100.0, 30.0):
        found = []
        for prepare in (blocks.write_out, lambda model: model):
            model = prepare(blocks.build(**DEEP))
            with torch.no_grad():
                model.skip_gates.fill_(value)
            losses, gradients = blocks.gradients(model)
            found.append((losses, {name: g for name, g in gradients.items() if name.startswith("blocks.1")}))
        assert len(found[1][1]) > 5
        blocks.assert_alike(*found)


class Additions(TorchDispatchMode):
    """Counts those of tensors of each size: autograd's, and in place."""

    def __init__(self):
        super().__init__()
        self.made, self.in_place = collections.Counter(), collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        kinds = {"aten::add.Tensor": self.made, "aten::add_.Tensor": self.in_place}
        if function.name() in kinds:
            kinds[function.name()][result.numel()] += 1
        return result


@INTERPRETED
@pytest.mark.usefixtures("small")
def test_gradients_of_streams_are_not_added_up_by_passes_of_their_own(monkeypatch):
    """Of four encoder outputs three are read by a block and by a skip, without epilogues an addition each; the fourth
    is both streams of a skip. The stream where the lanes split is read by a skip and by the second lane. The embedding,
    which the first block reads twice, is one of those in place. Rows of parameters are not added up one by one either.
    """
    monkeypatch.setattr(epilogue, "present", lambda: False)
    model = blocks.write_out(blocks.build(**DEEP))
    assert len(model.skip_weights) == 4
    torch.manual_seed(1)
    ids, targets = torch.randint(blocks.VOCAB, (2, 1, blocks.LENGTH))
    loss = model.losses(ids, targets).sum()
    assert kept(model)
    with Additions() as seen:
        loss.backward()
    streams = blocks.LENGTH * 16
    assert (seen.made[streams], seen.in_place[streams]) == (0, 4)
    assert seen.made[model.skip_weights.numel()] == 0
    assert not kept(model)


@INTERPRETED
@pytest.mark.usefixtures("small")
def test_nothing_is_kept_without_gradients():
    model = blocks.write_out(blocks.build())
    ids = torch.zeros(1, blocks.LENGTH, dtype=torch.long)
    with torch.no_grad():
        model.hidden(ids)
    assert not kept(model)
    model.requires_grad_(False)
    model.blocks[0].requires_grad_(True)  # its input needs none
    model.hidden(ids)
    assert not kept(model)


def test_what_comes_back_for_an_alias_alone_is_multiplied_too():
    """Where nothing reads the result of the block that returned it."""
    branch = skips.Branch(torch.tensor([0.5, 2.0]))
    for held, expected in ((branch, [0.5, 2.0]), (None, [1.0, 1.0])):
        ctx = SimpleNamespace(call=SimpleNamespace(branch=held))
        dx = SequentialBlock.backward(ctx, None, None, torch.ones(3, 2))[1]
        assert dx.tolist() == [expected] * 3
