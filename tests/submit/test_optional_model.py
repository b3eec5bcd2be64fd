"""A packed model builds and runs with the modules that its parameters reach, and has no others to spare."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.config import to_dict
from pgolf.model.config import HashConfig, ModelConfig, MultiTokenConfig, ValueEmbedConfig
from pgolf.model.gpt import GPT
from pgolf.sections import load_sections
from pgolf.submit.pack_code import OPTIONAL, optional_modules

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "layers": 3, "dim": 32, "heads": 4, "kv_heads": 2, "rope_dims": 4, "mlp_mult": 2.0, "xsa_layers": 3,
    "loop_runs": 1, "parallel_from": 2,
}  # fmt: skip
TECHNIQUES: list[dict[str, Any]] = [
    {},
    {"parallel": "lanes", "attn_gate": "sparse", "smear": "window"},
    {"parallel": "merge", "attn_gate": "per_head", "norm_pct": 0.9},
    {"parallel": "lanes_sequential", "smear": "vector"},
    {"bigram": HashConfig(rows=9), "value_embed": ValueEmbedConfig(last=1), "smear": "raw_vector"},
    {"trigram": HashConfig(rows=9), "value_residual": "learned"},
    {"value_residual": "gated", "attention": "differential"},
    {"value_residual": "fixed", "mlp_gate": True},
    {"token_gate": True, "activation": "star_relu"},
    {"mlp_rank": 0.5},
    {"mlp_blocks": 2, "rope_scaling": "yarn", "rope_factor": 2.0},
    {"stack_runs": 2, "loop_pos": "normal", "init": "overtone"},
    {"multi_token": MultiTokenConfig(heads=1), "rope_scaling": "ntk", "rope_factor": 2.0},
]


@pytest.mark.parametrize("changes", TECHNIQUES, ids=str)
def test_a_model_imports_exactly_the_optional_modules_that_ship(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(**SMALL | changes)
    params = load_sections(ROOT / "params.yaml").resolved() | {"model": to_dict(config)}
    left_out, imported = optional_modules(params), set()
    original = builtins.__import__

    def watched(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in left_out:
            raise ImportError(f"{name} is not in the packed program")
        imported.add(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", watched)
    model = GPT(config, 40).begin_training()
    model.prepare(8)
    model.losses(*torch.randint(40, (2, 1, 8))).mean().backward()
    monkeypatch.undo()
    shipped = {module for module in OPTIONAL if module.startswith("pgolf.model.")} - left_out
    # a form of lanes imports the first one when it is loaded, which here has happened before
    assert shipped - {"pgolf.model.lanes"} <= imported


def test_every_optional_module_of_the_model_is_reached_by_one_of_these() -> None:
    resolved = load_sections(ROOT / "params.yaml").resolved()
    reached = set()
    for changes in TECHNIQUES:
        reached |= set(OPTIONAL) - optional_modules(resolved | {"model": to_dict(ModelConfig(**SMALL | changes))})
    assert {module for module in OPTIONAL if module.startswith("pgolf.model.")} <= reached
