"""Adaptation through compiled blocks: the same losses, few graphs, and all of them before the clock."""

import numpy as np
import pytest
import torch
from document_models import LENGTH, settings_of, stream_of, tiny_model

from pgolf.evaluate import document_ttt as module
from pgolf.evaluate.config import ChunkTTTConfig, PhasesConfig
from pgolf.evaluate.warm_up import compile_adaptation


def test_three_graphs_serve_all_rows_and_lengths_and_all_come_from_random_text(monkeypatch):
    # float64: in float32 a CPU has a norm of its own, which only eager mode can run
    shape = {"layers": 2, "parallel_from": 1, "loop_runs": 1, "attn_gate": "none", "smear": "none", "xsa_layers": 0}
    model = tiny_model(dtype=torch.float64, **shape)
    tokens, graphs = stream_of(5, 21, 26, 7, 8, 30, 1), []
    sgd = ChunkTTTConfig(chunk_tokens=LENGTH, lr=0.05, epochs=1, rows_per_step=1)
    phases = PhasesConfig(prefix_documents=3, count=1, ranks=1)
    config = settings_of("phased", documents=2, phases=phases, chunk=sgd, maps=("v", "head"))
    eager, updates = module.document_ttt(model, tokens, config)
    assert any(update.first == 0 and update.steps > 1 for update in updates), "no update of the shared weights"

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_adaptation(model, config, count)
    assert len(graphs) == 3, "block, block with two lanes, head"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    monkeypatch.setattr(module, "back_end", lambda config, device: count)
    found, _ = module.document_ttt(model, tokens, config)
    assert len(graphs) == 3, "something is compiled while the clock runs"
    np.testing.assert_allclose(found, eager, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"ttt": "lora"}, {"ttt": "cached", "stride": 8, "growth": 2}], ids=str)
def test_compiled_blocks_find_the_same(monkeypatch, options):
    model = tiny_model(dtype=torch.float64)
    tokens, config = stream_of(5, 21, 26), settings_of(**options, documents=3)
    eager, _ = module.document_ttt(model, tokens, config)
    monkeypatch.setattr(module, "back_end", lambda config, device: "aot_eager")
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
