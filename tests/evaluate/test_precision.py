"""Adaptation in float32 with attention in bfloat16, and that the model is given back."""

import pytest
import torch
from document_models import CHUNK, settings_of, stream_of, tiny_model

from pgolf.evaluate import document_ttt as module
from pgolf.evaluate.precision import precise
from pgolf.model.attention import attend, rounded


def test_attention_of_float32_rounds_its_inputs_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, heads, 8, generator=generator) for heads in (4, 2, 2))
    with rounded():
        found = attend(q, k, v)
        half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, half.float())
    assert not torch.equal(found, attend(q, k, v)), "outside, attention is exact"


def test_a_model_in_bfloat16_is_nearly_exact_within():
    exact, model = (tiny_model(std=0.2, layers=6, parallel_from=4).float() for _ in range(2))
    model.dtype = torch.bfloat16
    exact.prepare(16)
    model.prepare(16)
    ids = torch.randint(2, 24, (4, 16), generator=torch.Generator().manual_seed(0))

    def hidden(net):
        with torch.no_grad():
            return net.hidden(ids).float()

    truth, coarse = hidden(exact), hidden(model)
    with precise(model, 16):
        fine = hidden(model)
        q = torch.randn(1, 3, 2, 8)
        assert torch.equal(attend(q, q, q), attend(q.bfloat16(), q.bfloat16(), q.bfloat16()).float())
        assert model._cos.dtype == torch.float32
    assert model._cos.dtype == torch.bfloat16
    assert (fine - truth).abs().mean() < (coarse - truth).abs().mean() / 2
    assert model.dtype == torch.bfloat16
    assert torch.equal(hidden(model), coarse)
    with pytest.raises(KeyError), precise(model, 16):
        raise KeyError
    assert torch.equal(hidden(model), coarse)


def test_a_model_in_float32_stays_as_it_is():
    model = tiny_model()
    with precise(model, 16):
        q = torch.randn(1, 3, 2, 8)
        assert torch.equal(attend(q, q, q), torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, q, q)), is_causal=True).transpose(1, 2))  # fmt: skip


@pytest.mark.parametrize(
    ("ttt", "expected"), [("lora", torch.float32), ("phased", torch.float32), ("cached", torch.bfloat16)]
)
def test_documents_adapt_in_that_precision(monkeypatch, ttt, expected):
    """Remembered keys and values would take twice the memory: `cached` stays in bfloat16."""
    model, seen = tiny_model(), set()
    model.dtype = torch.bfloat16
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda *a, **k: (seen.add((out := hidden(*a, **k)).dtype), out)[1])
    module.document_ttt(model, stream_of(9, 7), settings_of(ttt, stride=8, chunk_tokens=CHUNK))
    assert seen == {expected}
    assert model.dtype == torch.bfloat16
