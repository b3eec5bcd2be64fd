"""Compiling by parts: the same numbers as eager, and no graph more for a deeper model or for recurrence."""

import contextlib

import pytest
import torch
import torch._dynamo.testing
from random_model import random_model

from pgolf.model import blocks
from pgolf.model.attention import Segments, attend
from pgolf.model.config import ModelConfig
from pgolf.train.compiled import compile_model, plain_model
from pgolf.train.openings import openings

VOCAB, LENGTH = 48, 24


def shape(layers, **more):
    return ModelConfig(
        layers=layers, dim=32, heads=4, kv_heads=2, rope_dims=4, loop_start=1, loop_end=2, loop_runs=2,
        xsa_layers=layers, **more,
    )  # fmt: skip


def lanes(layers):
    return shape(layers, parallel="lanes", parallel_from=layers - 2, smear="window", attn_gate="sparse")


def build(config):
    return random_model(config, VOCAB, LENGTH)


def batch(segments=3):
    torch.manual_seed(1)
    ids, targets = torch.randint(VOCAB, (2, 1, LENGTH))
    bounds = [0, 5, 11, *[LENGTH] * (segments - 2)]
    return ids, targets, Segments(torch.tensor(bounds, dtype=torch.int32), 13)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("config", [shape(5, parallel_from=3), lanes(6)], ids=["parallel", "lanes"])
def test_compiled_parts_give_the_losses_and_gradients_of_the_eager_model(config):
    eager, compiled = build(config), build(config)
    compile_model(compiled, backend="aot_eager")
    ids, targets, _ = batch()
    for model in (eager, compiled):
        model.losses(ids, targets).mean().backward()
    torch.testing.assert_close(compiled.losses(ids, targets), eager.losses(ids, targets))
    for (name, mine), theirs in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert list(compiled.state_dict()) == list(eager.state_dict())


@torch.library.custom_op("pgolf_test::attend", mutates_args=())
def opaque(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
    return attend(q, k, v, Segments(cu_seqlens, longest)).clone()


@opaque.register_fake
def _(q, k, v, cu_seqlens, longest):
    return torch.empty_like(q)


opaque.register_autograd(lambda context, dy: (dy, None, None, None, None))


@contextlib.contextmanager
def using_opaque_attention():
    """Attention as one node of the graph, as on a GPU; here its gradient does not matter."""
    blocks.attend = lambda q, k, v, segments: opaque(q, k, v, *segments)
    try:
        yield
    finally:
        blocks.attend = attend


def graphs(config):
    model, counter = build(config), torch._dynamo.testing.CompileCounterWithBackend("eager")
    compile_model(model, backend=counter)
    ids, targets, _ = batch()
    for looped in (False, True):
        model.looped = looped
        model.losses(ids, targets).mean().backward()
        openings(model, ids)  # a look at the gates makes no graph, and those that are there stay valid
        model.losses(ids, targets).mean().backward()
    return counter.frame_count


def test_depth_and_recurrence_add_no_graph():
    """Embedding, head, lanes; blocks and skips twice, for the first of each reads the same tensor as both inputs."""
    shallow = graphs(lanes(6))
    torch._dynamo.reset()
    assert graphs(lanes(9)) == shallow == 7


def test_the_number_of_documents_adds_no_graph():
    model, counter = build(lanes(6)), torch._dynamo.testing.CompileCounterWithBackend("eager")
    compile_model(model, backend=counter)
    seen = []
    for entries in (64, 128, 192):
        ids, targets, segments = batch(entries)
        torch._dynamo.maybe_mark_dynamic(segments.cu_seqlens, 0)
        with using_opaque_attention():
            model.losses(ids, targets, segments).mean().backward()
        seen.append(counter.frame_count)
    assert len(set(seen)) == 1


def test_a_plain_model_runs_its_hooks_again():
    model, seen = build(lanes(6)), []
    before = set(vars(model)) | set(vars(model.blocks[0]))
    compile_model(model, backend="eager")
    ids, targets, _ = batch()
    model.losses(ids, targets)
    plain_model(model)
    assert set(vars(model)) | set(vars(model.blocks[0])) == before
    model.blocks[0].attn.c_q.register_forward_pre_hook(lambda module, inputs: seen.append(module))
    model.losses(ids, targets)
    assert seen
