"""The embedding's pass and its gradient against the model's own in double precision, and in a model's place."""

import dataclasses

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import test_kernel_switch as switch
from test_kernel_passes import DEVICE, TRAINING, assert_near

from pgolf.kernels import embedding
from pgolf.model.gpt import GPT
from pgolf.model.smear import BOS
from pgolf.train import fast
from pgolf.train.compiled import compile_model, plain_model
from pgolf.train.fused_embed import embed

INTERPRETED = pytest.mark.skipif(switch.ON_GPU, reason="the interpreter runs without a GPU")
SMEARED = {"smear": "window", "gate_window": 12}
FORMS = [
    pytest.param({}, id="rows alone"),
    pytest.param(SMEARED | {"smear_mask": False}, id="smear"),
    pytest.param(SMEARED, id="masked"),
]
SMALL = {"vocab": 40, "rows": 2, "length": 53}
SIZES = [
    pytest.param(SMALL, torch.float32, torch.float32, 4e-6, id="small"),
    pytest.param(SMALL, torch.bfloat16, torch.float32, 8e-3, id="rounded"),
    pytest.param(
        {"vocab": 8192, "rows": 1, "length": 98_304, "dim": 512, "heads": 8},
        torch.bfloat16, torch.bfloat16, 8e-3, id="training", marks=TRAINING,
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Several programs."""
    if not switch.ON_GPU:
        monkeypatch.setattr(embedding, "CHUNK", 4)


def build(vocab=40, seed=0, **changes):
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(switch.CONFIG, **{"dim": 24, "heads": 3} | changes), vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.to(DEVICE)


def documents(vocab, rows, length):
    """Half of them one id, documents of 11, some ids nowhere, one at the end of a row and the start of the next."""
    ids = torch.randint(vocab - 3, (rows, length), device=DEVICE)
    ids = torch.where(torch.rand(ids.shape, device=DEVICE) < 0.5, 3, ids)
    ids[:, ::11] = BOS
    ids[:, 0] = ids[:, -1] = 7
    return ids


def gradients(x0, model, d):
    parameters = [model.tok_emb.weight]
    if model.window_smear is not None:
        parameters += [model.smear_gate.weight, model.smear_lambda]
    return torch.autograd.grad(x0, parameters, d.to(x0.dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "table", "dtype", "bound"), SIZES)
def test_embedding_and_all_its_gradients(form, size, table, dtype, bound):
    shape = size | form
    sizes = [shape.pop(name) for name in ("vocab", "rows", "length")]
    model = build(sizes[0], **shape)
    ids = documents(*sizes)
    d = torch.randn(*ids.shape, model.config.dim, device=DEVICE).to(dtype)
    model.tok_emb.weight.data = model.tok_emb.weight.data.to(table)
    model.dtype = dtype
    twin = build(sizes[0], **shape).double()
    twin.tok_emb.weight.data = model.tok_emb.weight.detach().double()
    twin.dtype = torch.float64
    x0, expected = embed(model, ids), twin.embed(ids)
    assert x0.dtype == dtype
    assert_near([x0], [expected], bound)
    found, wanted = gradients(x0, model, d), gradients(expected, twin, d)
    assert [each.dtype for each in found] == [table, *[torch.float32] * (len(found) - 1)]
    assert_near(found, wanted, bound)
    wrong = (found[0].double() - wanted[0]).norm(dim=1)
    assert bool((wrong <= bound * wanted[0].norm(dim=1)).all()), "a row is no one's in any other's shadow"
    assert not found[0][wanted[0].norm(dim=1) == 0].any()


@INTERPRETED
@pytest.mark.parametrize("ids", [[[5]], [[5, 5, 5, 5]], [[0, 2, 0, 2, 0, 2, 0, 2]], [[5], [5], [5]], [[1] * 37]])
def test_few_tokens(ids):
    """One program, exactly full ones, rows of one token, one id of all."""
    model, twin = build(**SMEARED), build(**SMEARED).double()
    twin.dtype = torch.float64
    tokens = torch.tensor(ids)
    x0, expected = embed(model, tokens), twin.embed(tokens)
    assert_near([x0], [expected], 4e-6)
    d = torch.randn(x0.shape)
    for found, wanted in zip(gradients(x0, model, d), gradients(expected, twin, d), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@INTERPRETED
def test_ids_that_lie_apart_in_memory():
    model = build(**SMEARED)
    ids = documents(40, 2, 24)[:, ::2]
    found, wanted = embed(model, ids), embed(model, ids.contiguous())
    assert torch.equal(found, wanted)
    d = torch.randn(24, *ids.shape).permute(1, 2, 0)
    for a, b in zip(gradients(found, model, d), gradients(wanted, model, d.contiguous()), strict=True):
        assert torch.equal(a, b)


@INTERPRETED
@pytest.mark.parametrize("form", FORMS)
def test_a_model_trains_alike_and_comes_back(form):
    torch._dynamo.reset()
    model, expected = switch.build(**form), switch.gradients(switch.build(**form))
    fast.hide(model)
    function = model.embed
    switch.assert_alike(switch.gradients(model), expected)
    compile_model(model, backend="aot_eager")
    assert model.embed == function, "it is compiled"
    plain_model(model)
    fast.hide(model)
    assert "embed" in vars(model)
    fast.remove(model)
    assert "embed" not in vars(model)
    switch.assert_alike(switch.gradients(model), expected)
    torch._dynamo.reset()


@INTERPRETED
def test_a_table_that_does_not_train_has_no_gradient():
    model = switch.build(**SMEARED)
    fast.hide(model)
    model.tok_emb.requires_grad_(False)
    ids = torch.randint(switch.VOCAB, (1, switch.LENGTH))
    model.embed(ids).sum().backward()
    assert model.tok_emb.weight.grad is None
    assert model.smear_lambda.grad is not None
    with torch.no_grad():
        assert not model.embed(ids).requires_grad


@INTERPRETED
def test_the_tokens_before_those_that_run():
    model, twin = switch.build(**SMEARED), switch.build(**SMEARED)
    fast.hide(model)
    ids = torch.randint(switch.VOCAB, (1, switch.LENGTH))
    with torch.no_grad():
        torch.testing.assert_close(model.hidden(ids, lead=3), twin.hidden(ids, lead=3))


def test_other_embeddings_stay_plain():
    table = {"rows": 50, "dim": 8}
    others = [{"smear": "vector"}, {"smear": "raw_vector"}, {"bigram": table}, {"trigram": table}]
    for changes in others:
        changes = {
            name: type(getattr(switch.CONFIG, name))(**value) if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        model = switch.build(**changes)
        assert not fast.fits_embedding(model), changes
        fast.hide(model)
        assert "embed" not in vars(model)
    for changes in ({}, SMEARED, SMEARED | {"smear_mask": False}):
        assert fast.fits_embedding(switch.build(**changes)), changes
