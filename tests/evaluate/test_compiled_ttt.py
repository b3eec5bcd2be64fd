"""Adaptation through compiled blocks: the same losses, and no function falls apart into several graphs."""

import numpy as np
import pytest
import torch
from document_models import settings_of, stream_of, tiny_model

from pgolf.evaluate import document_ttt as module
from pgolf.evaluate.compiled import compiled


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"ttt": "lora"}, {"ttt": "cached", "stride": 8, "reread": 3}], ids=str)
def test_compiled_blocks_find_the_same(monkeypatch, options):
    model = tiny_model(dtype=torch.float64)  # in float32 a CPU has a norm of its own, for eager mode only
    tokens, config = stream_of(5, 21, 26), settings_of(**options, documents=3)
    eager, _ = module.document_ttt(model, tokens, config)
    monkeypatch.setattr(module, "compiled", lambda model, backend: compiled(model, "aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found, _ = module.document_ttt(model, tokens, config)
    np.testing.assert_allclose(found, eager, rtol=0, atol=1e-6)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["graph_break"]
    assert "forward" not in vars(model.blocks[0])
    assert "surprise" not in vars(model)


@pytest.mark.gpu
@pytest.mark.parametrize("ttt", ["lora", "cached"])
def test_gpu_agrees_with_cpu(ttt):
    model, tokens = tiny_model(), stream_of(5, 9, 21, 26, 30)
    config = settings_of(ttt, stride=8, lr=0.0)
    expected, updates = module.document_ttt(model, tokens, config)
    found, same = module.document_ttt(model.cuda(), tokens, config)
    assert updates == same
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2)
