"""The temperature of all scores, and how training text gives it."""

import dataclasses

import numpy as np
import pytest
import torch
from document_models import settings_of, stream_of, tiny_model

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.run import evaluate, references
from pgolf.lab.temperature import golden_section


@pytest.mark.parametrize("ttt", ["none", "lora"])
def test_every_score_is_of_softened_logits(ttt):
    model, tokens = tiny_model(std=0.5), stream_of(12)
    config = dataclasses.replace(settings_of(ttt, lr=0.0), temperature=1.7)
    ids = torch.from_numpy(tokens.astype(np.int64))
    model.prepare(12)
    with torch.no_grad():
        expected = -torch.log_softmax(model(ids[None, :-1])[0] / 1.7, -1)[range(12), ids[1:]].numpy()
    result = evaluate(model, tokens, np.ones(13, dtype=np.uint16), config)
    np.testing.assert_allclose(result.losses, expected, rtol=0, atol=2e-6)
    compared = references(model, tokens, np.ones(13, dtype=np.uint16), config, result)
    np.testing.assert_allclose(compared.plain_losses, expected, rtol=0, atol=2e-6)
    plain = evaluate(model, tokens, np.ones(13, dtype=np.uint16), dataclasses.replace(config, temperature=1.0))
    assert np.abs(plain.losses - expected).max() > 1e-2, "the model is given back at 1"


def test_the_search_finds_where_the_gradient_vanishes():
    """Logits three times too sharp: the gradient of the mean loss in 1 / T is E_p[z] - z_y, at the best T zero."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 10, generator=generator, dtype=torch.float64)
    y = torch.multinomial(torch.softmax(z, -1), 1, generator=generator)
    z = 3 * z

    def loss(temperature):
        return float(-torch.log_softmax(z / temperature, -1).gather(1, y).mean())

    best = golden_section(loss, 0.5, 8.0, 1e-4)
    assert best == pytest.approx(3, abs=0.2)
    slope = ((torch.softmax(z / best, -1) * z).sum(-1) - z.gather(1, y)[:, 0]).mean()
    curvature = (torch.softmax(z / best, -1) * (z - z.mean(-1, keepdim=True)) ** 2).sum(-1).mean()
    assert abs(float(slope / curvature)) < 1e-4
    for edge in (1.0, 2.0):
        assert golden_section(lambda x, edge=edge: (x - edge) ** 2, 1.0, 2.0, 1e-3) == pytest.approx(edge, abs=1e-3)


def test_it_must_be_positive():
    with pytest.raises(InputError, match=r"`temperature` is 0\.0"):
        build(EvaluateConfig, {"temperature": 0.0}, "evaluate")
