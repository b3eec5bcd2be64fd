"""Clipping by parts, and the loss on a part of the tokens, against one gradient at a time."""

import dataclasses

import pytest
import torch
from random_model import random_model

from pgolf.data.batches import Batch
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig
from pgolf.train.exchange import Exchange
from pgolf.train.gradients import add
from pgolf.train.norms import clip_globally
from pgolf.train.run import cast_embedding
from pgolf.train.schedule import settings
from pgolf.train.selective import hardest
from pgolf.train.trainer import Trainer

VOCAB, LENGTH = 32, 8
MODEL = ModelConfig(
    layers=2, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=0, loop_end=0, loop_runs=2,
    parallel_from=1, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(steps=4, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=6 * LENGTH)


def trainer(**changes):
    return Trainer(random_model(MODEL, VOCAB, LENGTH, 0.2), dataclasses.replace(CONFIG, **changes))


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    windows = [torch.randint(VOCAB, (2, LENGTH + 1), generator=generator) for _ in range(count)]
    return [Batch(w[:, :-1].contiguous(), w[:, 1:].contiguous(), None) for w in windows]


def gradients(model, batch):
    loss = model.losses(batch.inputs, batch.targets).mean()
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def norm(grads):
    return sum(g.double().square().sum().item() for g in grads) ** 0.5


def test_local_clipping_is_the_mean_of_clipped_gradients():
    t, limit = trainer(clip="local", grad_clip=0.5), 0.5
    now = settings(t.config, 0, 0.5)
    t.model.runs = min(now.runs, MODEL.loop_runs)
    parts = [gradients(t.model, batch) for batch in batches()]
    assert all(norm(part) > limit for part in parts)
    clipped = [[g * limit / norm(part) for g in part] for part in parts]
    expected = [sum(grads) / 3 for grads in zip(*clipped, strict=True)]
    loss = t.backward(iter(batches()), now)
    for parameter, wanted in zip(t.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted.float(), rtol=1e-4, atol=1e-6)
    mean = torch.stack([t.model.losses(b.inputs, b.targets).mean() for b in batches()]).mean()
    torch.testing.assert_close(loss, mean.detach())


def test_local_and_global_agree_on_one_part_and_differ_on_several():
    for count, same in ((1, True), (3, False)):
        results = []
        for clip in ("local", "global"):
            t = trainer(clip=clip, grad_clip=0.5, batch_tokens=2 * count * LENGTH)
            now = settings(t.config, 0, 0.5)
            t.backward(iter(batches(count)), now)
            if clip == "global":
                torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.5)
            results.append(torch.cat([p.grad.flatten() for p in t.model.parameters()]))
        assert torch.allclose(*results, rtol=1e-4, atol=1e-7) == same


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_clipped_by_one_factor_whatever_their_type(shared):
    """Near one that bfloat16 would round by 2e-3."""
    t = trainer()
    cast_embedding(t.model, torch.bfloat16)
    t.backward(iter(batches()), settings(t.config, 0, 0.5))
    embedding, grads = t.model.tok_emb.weight.grad, [p.grad for p in t.model.parameters() if p.grad is not None]
    limit, share = 0.752 * norm(grads), norm([embedding]) / norm(grads)
    if shared:  # as if several processes had added them up
        t.exchange = Exchange(t.muon, [p for group in t.adam.param_groups for p in group["params"]])
        t.muon.own = {key: torch.stack([p.grad for p in stack]) for key, stack in t.muon.stacks.items()}
        grads = [p.grad for p in t.exchange.others if p.grad is not None] + list(t.muon.own.values())
    clip_globally(t, limit)
    assert norm(grads) == pytest.approx(limit, rel=4e-3)  # the embedding's norm is a bfloat16 number
    assert norm([embedding]) / norm(grads) == pytest.approx(share, rel=3e-4)


def test_an_update_with_local_clipping_does_not_clip_again():
    t = trainer(clip="local", grad_clip=1e-3, batch_tokens=2 * LENGTH)
    now = settings(t.config, 0, 0.5)
    t.backward(iter(batches()), now)
    for parameter in t.model.parameters():
        parameter.grad.mul_(1e6)
    grad = t.model.tok_emb.weight.grad.clone()
    t.update(now)
    torch.testing.assert_close(t.state()["adam.tok_emb.weight.exp_avg"], 0.1 * grad)


def test_a_parameter_without_gradient_gets_none():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    for _ in range(2):
        before, used.grad = [used.grad, unused.grad], None
        (3 * used).sum().backward()
        add([used, unused], before, torch.tensor(1.0))
    torch.testing.assert_close(used.grad, torch.full((2,), 2 / 2**0.5))
    assert unused.grad is None


@pytest.mark.parametrize("limit", [None, 0.7, 1e3])
def test_sums_stay_in_their_place_and_get_the_clipped_gradients(limit):
    torch.manual_seed(0)
    shapes, types = [(3, 4), (5,), (9, 40), (4,)], [torch.float64, torch.float32, torch.bfloat16, torch.float32]
    parameters = [torch.nn.Parameter(torch.zeros(s, dtype=t)) for s, t in zip(shapes, types, strict=True)]
    sums = [*(torch.randn(p.shape).to(p.dtype) for p in parameters[:3]), None]
    started = [total if total is None else total.double() for total in sums]
    new = [torch.randn(p.shape).to(p.dtype) for p in parameters]
    for parameter, gradient in list(zip(parameters, new, strict=True))[1:]:
        parameter.grad = gradient.clone()  # of the first there is none
    add(parameters, sums, None if limit is None else torch.tensor(limit))
    factor = 1 if limit is None else min(1, limit / norm(new[1:]))
    expected = [started[0], *(s + factor * g.double() for s, g in zip(started[1:3], new[1:3], strict=True))]
    expected.append(factor * new[3].double())
    for parameter, total, wanted in zip(parameters, sums, expected, strict=True):
        assert total is None or parameter.grad is total
        rough = parameter.dtype == torch.bfloat16
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=4e-3, atol=4e-3 if rough else 1e-6)


def test_what_has_no_gradient_keeps_its_sum():
    held = torch.full((2,), 3.0)
    for limit in (None, torch.tensor(1.0)):
        parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        add(parameters, [held, None], limit)
        assert parameters[0].grad is held
        assert parameters[1].grad is None
    assert held.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("fraction", "kept"), [(0.95, 10), (0.5, 5), (0.41, 5), (0.01, 1)])
def test_selected_tokens_are_those_with_the_largest_loss(fraction, kept):
    torch.manual_seed(0)
    losses = torch.rand(2, 5, requires_grad=True)
    mean = hardest(losses, fraction).mean()
    mean.backward()
    largest = sorted(losses.flatten().tolist(), reverse=True)[:kept]
    assert mean.item() == pytest.approx(sum(largest) / kept)
    assert sorted(losses.detach()[losses.grad > 0].tolist(), reverse=True) == pytest.approx(largest)
    torch.testing.assert_close(losses.grad[losses.grad > 0], torch.full((kept,), 1 / kept))


def test_selection_changes_the_gradient_and_not_the_reported_loss():
    results = []
    for fraction in (1.0, 0.3):
        t = trainer(token_fraction=fraction)
        loss = t.backward(iter(batches()), settings(t.config, 0, 0.0))
        results.append((loss, t.model.tok_emb.weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1], results[1][1])
