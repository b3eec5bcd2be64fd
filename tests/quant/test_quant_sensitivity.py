"""Sensitivities of outputs against gradients taken in another way, and calibration on text of the model's own."""

import pytest
import torch
import torch.nn.functional as F
from looped_model import CONFIG, looped_model
from matrix_products import seen

from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.calibrate import calibrate
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.generate import generated_rows
from pgolf.quant.sensitivity import collect_sensitivities

VOCAB = 24


@pytest.fixture
def model():
    return looped_model(VOCAB, 8).requires_grad_(False)


def batch(seed=1):
    ids = torch.randint(2, VOCAB - 4, (3, 8), generator=torch.Generator().manual_seed(seed))
    return Batch(ids, ids, None)


def by_hand(model, ids, monkeypatch):
    """Outputs of every matrix product, by parameter name, the normalised embedding and the logits, in one graph."""
    outputs, embed, x0 = {}, model.embed, []

    def see(name, x, y):
        if y.requires_grad:
            outputs.setdefault(name, []).append(y)

    def watched(ids):
        x0.append(embed(ids).requires_grad_())
        return x0[0]

    with seen(model, monkeypatch, see), monkeypatch.context() as patch, torch.enable_grad():
        patch.setattr(model, "embed", watched)
        return outputs, x0, model(ids)


def test_sensitivities_are_second_moments_of_the_gradients(model, monkeypatch):
    data, per_batch = batch(), 100
    found = collect_sensitivities(model, iter([data]), 1, per_batch)
    outputs, (x0,), logits = by_hand(model, data.inputs, monkeypatch)
    p = logits.detach().flatten(0, 1).softmax(-1)
    labels = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(logits.flatten(0, 1), labels[:, 0], reduction="sum").backward(
        inputs=[x0, *(y.requires_grad_() for ys in outputs.values() for y in ys if y.is_leaf)], retain_graph=True
    )
    names = [name for name in matrix_inputs(CONFIG) if name != "tok_emb.weight"]
    assert set(found) == {f"{name}.G" for name in names} | {"tok_emb.weight.G", "tok_emb.weight.B"}
    total = F.cross_entropy(logits.flatten(0, 1), labels[:, 0], reduction="sum")
    for name in names:
        expected = 0
        for g in torch.autograd.grad(total, outputs[name], retain_graph=True):
            expected = expected + g.flatten(0, -2).double().mT @ g.flatten(0, -2).double()
        assert torch.allclose(found[f"{name}.G"].double(), expected / (24 * per_batch), rtol=1e-4, atol=1e-9), name
    energy = x0.grad.square().mean(-1).flatten()
    for token in range(VOCAB):
        rows = model.tok_emb.weight[token].square().mean()
        expected = energy[data.inputs.flatten() == token].sum() / rows / 24
        assert found["tok_emb.weight.B"][token] == pytest.approx(expected.item(), rel=1e-4)
    assert not found["tok_emb.weight.B"][VOCAB - 4 :].any()


def test_the_head_takes_the_mean_over_all_labels(model):
    data = batch()
    found = collect_sensitivities(model, iter([data]), 1, 10)["tok_emb.weight.G"]
    with torch.no_grad():
        plain = F.linear(model.hidden(data.inputs), model.tok_emb.weight).flatten(0, 1).double()
    expected = torch.zeros(VOCAB, dtype=torch.float64)
    for u in plain:
        u.requires_grad_()
        z = CONFIG.softcap * torch.tanh(u / CONFIG.softcap)
        for label in range(VOCAB):
            (g,) = torch.autograd.grad(-z.log_softmax(-1)[label], u, retain_graph=True)
            expected += z.softmax(-1)[label].detach() * g.square()
    assert torch.allclose(found.double(), expected / (24 * 10), rtol=1e-4)


def test_collecting_leaves_the_model_as_it_was(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    collect_sensitivities(model, iter([batch()]), 1, 10)
    assert "embed" not in vars(model)
    assert not any(module._backward_hooks for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_generated_text_follows_the_model(model):
    cold = next(generated_rows(model, 4, 8, 1e-4, 3))
    assert cold.inputs.shape == cold.targets.shape == (4, 8)
    assert torch.equal(cold.inputs[:, 1:], cold.targets[:, :-1])
    for length in range(1, 8):
        with torch.no_grad():
            best = model(cold.inputs[:, :length])[:, -1].argmax(-1)
        assert torch.equal(cold.targets[:, length - 1], best)


def test_generated_text_has_the_models_frequencies(model):
    model.prepare(2)
    rows = torch.cat([part.inputs for part, _ in zip(generated_rows(model, 2000, 2, 0.8, 0), range(2), strict=False)])
    assert torch.bincount(rows[:, 0], minlength=VOCAB).min() > 4000 / VOCAB * 0.7
    first = int(rows[0, 0])
    with torch.no_grad():
        expected = (model(torch.tensor([[first]]))[0, -1] / 0.8).softmax(-1)
    found = torch.bincount(rows[rows[:, 0] == first][:, 1], minlength=VOCAB).double()
    assert torch.allclose(found / found.sum(), expected.double(), atol=4 * 0.5 / found.sum().sqrt().item())


def test_the_seed_decides_the_text(model):
    texts = [next(generated_rows(model, 4, 6, 0.8, seed)).inputs for seed in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_calibration_on_generated_text_reads_no_shards(model):
    config = CalibrateConfig(batches=1, rows=2, seq_len=8, source="generated", sensitivity=1)
    found = calibrate(model, config, [])
    assert {"head", "tok_emb.weight.G", "tok_emb.weight.B"} <= set(found)
    assert set(found) >= {f"{name}.G" for name in matrix_inputs(CONFIG)} | set(matrix_inputs(CONFIG).values())


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"sensitivity": -1}])
def test_values_beyond_their_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        CalibrateConfig(**change)
