"""Hessians through quantized blocks: who sees what, and what is left of it where Hessians do not depend on weights."""

from dataclasses import replace

import pytest
import torch

from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.config import FitConfig, LqerConfig, QuantizeConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.sequential import quantize_in_turn
from pgolf.quant.state import restore

MODEL = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=1, parallel="none",
    loop_start=0, loop_end=0, loop_runs=1,
)  # fmt: skip
CONFIG = QuantizeConfig(small_numel=64, lqer=LqerConfig(top_k=0))


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    state = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in GPT(MODEL, 24).state_dict().items()}
    sources = matrix_inputs(MODEL)
    inputs = {source: torch.randn(40, state[name].size(1)) for name, source in sources.items()}
    return state, sources, {source: x.T @ x for source, x in inputs.items()}


def test_each_block_is_calibrated_behind_the_quantized_ones(checkpoint):
    state, sources, hessians = checkpoint
    seen = []

    def hessians_of(current):
        seen.append(dict(current))
        return {name: hessian * len(seen) for name, hessian in hessians.items()}

    done = quantize_in_turn(state, sources, CONFIG, hessians_of)
    restored = restore(done.tensors)
    assert set(restored) == set(state)
    assert len(seen) == MODEL.layers + 1
    for turn, current in enumerate(seen):
        for name, tensor in current.items():
            quantized = name.startswith("blocks.") and int(name.split(".")[1]) < turn
            assert torch.equal(tensor, restored[name] if quantized else state[name]), (turn, name)
    assert not torch.equal(restored["blocks.0.mlp.fc.weight"], state["blocks.0.mlp.fc.weight"])


def test_hessians_that_do_not_change_give_what_all_at_once_gives(checkpoint):
    state, sources, hessians = checkpoint
    at_once = quantize_model(state, hessians, sources, CONFIG)
    in_turn = quantize_in_turn(state, sources, CONFIG, lambda _: hessians)
    assert set(in_turn.tensors) == set(at_once.tensors)
    assert all(torch.equal(tensor, at_once.tensors[key]) for key, tensor in in_turn.tensors.items())
    assert {report.name for report in in_turn.reports} == {report.name for report in at_once.reports}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fit": FitConfig(target_bytes=9)}, "fit.target_bytes"),
        ({"lqer": LqerConfig(top_k=1)}, "lqer.top_k"),
        ({"canonical": True}, "canonical"),
    ],
)
def test_what_looks_at_all_matrices_is_refused(checkpoint, change, key):
    state, sources, hessians = checkpoint
    with pytest.raises(InputError, match=f"quantize.{key}"):
        quantize_in_turn(state, sources, replace(CONFIG, **change), lambda _: hessians)
