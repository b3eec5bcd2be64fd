"""Exceptions by name: which matrices they reach, and in which order they apply."""

import pytest
import torch

from pgolf.config import build
from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.grid import sdclip_scale
from pgolf.quant.policy import resolve
from pgolf.quant.quantize import quantize_model

SHAPES = {
    "tok_emb.weight": (40, 8), "blocks.0.mlp.fc.weight": (16, 8), "blocks.0.attn.c_q.weight": (8, 8),
    "blocks.1.mlp.fc.weight": (16, 8), "blocks.10.mlp.fc.weight": (16, 8), "blocks.1.attn_scale": (8,),
}  # fmt: skip


def grids(*tensors):
    config = build(QuantizeConfig, {"small_numel": 0, "tensors": list(tensors)}, "quantize")
    return {name: rule.grid for name, rule in resolve(SHAPES, config).items() if rule.grid}


def test_an_exception_changes_what_it_names_and_nothing_else():
    plain = grids()
    changed = grids({"name": "blocks.1.*", "bits": 5, "k_sigma": 9.0})
    assert changed.pop("blocks.1.mlp.fc.weight") == GridConfig(bits=5, k_sigma=9.0)
    plain.pop("blocks.1.mlp.fc.weight")
    assert changed == plain


def test_every_matching_exception_applies_in_order():
    found = grids(
        {"name": "blocks.*", "k_times": 2.0}, {"name": "*.mlp.*", "k_sigma": 5.0}, {"name": "*.10.*", "k_times": 3.0}
    )
    assert found["blocks.0.attn.c_q.weight"].k_sigma == 2 * 12.85
    assert found["blocks.1.mlp.fc.weight"].k_sigma == 5.0
    assert found["blocks.10.mlp.fc.weight"].k_sigma == 15.0
    assert found["tok_emb.weight"] == QuantizeConfig().embed


@pytest.mark.parametrize("name", ["blocks.7.*", "blocks.1.attn_scale"])
def test_an_exception_that_names_no_matrix_is_refused(name):
    with pytest.raises(InputError, match=r"`quantize.tensors` names .*no quantized matrix"):
        grids({"name": name, "bits": 5})


@pytest.mark.parametrize("entry", [{"bits": 9}, {"bits": 0}, {"k_sigma": 0.0}, {"k_times": 0.0}])
def test_values_beyond_their_range_are_refused(entry):
    with pytest.raises(InputError, match=r"quantize.tensors\[0\]"):
        grids({"name": "*", **entry})


def test_the_codes_follow_the_exception():
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    exceptions = [{"name": "blocks.1.*", "bits": 4, "k_sigma": 1.5}]
    config = build(QuantizeConfig, {"small_numel": 8, "tensors": exceptions}, "quantize")
    name = "blocks.1.mlp.fc.weight"
    done = quantize_model(state, {"x": torch.eye(8)}, dict.fromkeys(SHAPES, "x"), config)
    assert torch.equal(done.tensors[f"{name}.scale"], sdclip_scale(state[name], 1.5, 7))
    assert done.tensors[f"{name}.q"].abs().max() == 7
    assert {report.name: report.bits for report in done.reports}[name] == 4
