"""A packed evaluation runs with the modules that its parameters reach."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.config import to_dict
from pgolf.evaluate.config import CacheConfig, ChunkTTTConfig, EvaluateConfig, LoRAConfig, PhasesConfig
from pgolf.evaluate.run import evaluate, references
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.sections import load_sections
from pgolf.submit.pack_code import optional_modules

ROOT = Path(__file__).parents[2]
CACHE = CacheConfig(sharpness=9.0)
FORMS: list[dict[str, Any]] = [
    {},
    {"cache": CACHE},
    {"ttt": "chunk", "temperature": 1.1},
    {"ttt": "lora", "cache": CACHE, "lora": LoRAConfig(rank=1, chunk_tokens=4, documents=2, carry=0.5)},
    {"ttt": "phased", "seconds": 600.0, "lora": LoRAConfig(rank=1, chunk_tokens=4, documents=2)},
    {"ttt": "cached", "lora": LoRAConfig(rank=1, chunk_tokens=4, documents=2, optimizer="normalized")},
]


@pytest.mark.parametrize("changes", FORMS, ids=lambda form: form.get("ttt", "none"))
def test_an_evaluation_imports_optional_modules_that_ship_alone(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"seq_len": 16, "stride": 8, "batch_tokens": 64, "isolate_documents": True}
    sgd, phases = ChunkTTTConfig(chunk_tokens=16, epochs=1), PhasesConfig(prefix_documents=2, count=1, ranks=1)
    config = EvaluateConfig(**common | {"chunk": sgd, "phases": phases} | changes)
    left_out = optional_modules(load_sections(ROOT / "params.yaml").resolved() | {"evaluate": to_dict(config)})
    imported, original = set(), builtins.__import__

    def watched(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in left_out:
            raise ImportError(f"{name} is not in the packed program")
        imported.add(name)
        return original(name, *args, **kwargs)

    torch.manual_seed(0)
    shape = ModelConfig(
        layers=2,
        dim=16,
        heads=2,
        kv_heads=1,
        rope_dims=4,
        xsa_layers=0,
        loop_runs=1,
        parallel="none",
    )
    model = GPT(shape, 24)
    tokens = np.random.default_rng(0).integers(2, 24, 97).astype(np.uint16)
    tokens[::12] = 1
    monkeypatch.setattr(builtins, "__import__", watched)
    result = evaluate(model, tokens, np.ones(97, dtype=np.int64), config)
    references(model, tokens, np.ones(97, dtype=np.int64), config, result)
    monkeypatch.undo()
    own = {
        "pgolf.evaluate.neural_cache": config.cache != CacheConfig(),
        "pgolf.evaluate.pace": config.seconds is not None,
    }
    assert {module: module in imported for module in own} == own
