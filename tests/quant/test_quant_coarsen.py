"""Pruned and deduplicated codes, against choices made one by one."""

import pytest
import torch

from pgolf.quant.coarsen import dedup, prune_ones
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.gptq import weighted_error
from pgolf.quant.grid import dequantize
from pgolf.quant.quantize import entropy, quantize_model
from pgolf.quant.state import corrected_names

NAMES = ["blocks.0.mlp.fc.weight", "blocks.0.attn.c_q.weight", "blocks.1.mlp.fc.weight"]


def model():
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(16, 32, generator=generator) * (1 + i) for i, name in enumerate(NAMES)}
    X = torch.randn(200, 32, generator=generator) * torch.linspace(3, 0.1, 32)
    hessians = {"a": X.mT @ X, "b": torch.eye(32)}
    return state, hessians, dict(zip(NAMES, "aab", strict=True))


def quantized(**changes):
    return quantize_model(*model(), QuantizeConfig(small_numel=0, **changes))


def test_floor_and_even_codes():
    codes = torch.arange(-5, 6, dtype=torch.int8)
    assert dedup(codes, "none").tolist() == list(range(-5, 6))
    assert dedup(codes, "floor").tolist() == [q // 2 * 2 for q in range(-5, 6)]
    assert dedup(codes, "even").tolist() == [-4, -4, -2, -2, 0, 0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize(("kind", "bias"), [("floor", -0.5), ("even", 0.0)])
def test_floor_is_biased_by_half_a_step_and_even_is_not(kind, bias):
    plain, even = quantized(), quantized(dedup=kind)
    moved = torch.cat([(even.tensors[f"{n}.q"] - plain.tensors[f"{n}.q"]).flatten().float() for n in NAMES])
    assert moved.mean() == pytest.approx(bias, abs=0.06)
    assert sum(report.entropy for report in even.reports) < sum(report.entropy for report in plain.reports) - 2
    assert all(report.entropy == entropy(even.tensors[f"{report.name}.q"]) for report in even.reports)


def test_pruning_takes_ones_of_the_smallest_scales_first():
    plain = quantized()
    ones = sorted(
        (plain.tensors[f"{name}.scale"][i].item(), place, i, j)
        for place, name in enumerate(NAMES)
        for i in range(16)
        for j in range(32)
        if abs(plain.tensors[f"{name}.q"][i, j].item()) == 1
    )
    assert len(ones) > 300
    pruned = quantized(prune_ones=150).tensors
    for rank, (_, place, i, j) in enumerate(ones):
        assert (pruned[f"{NAMES[place]}.q"][i, j].item() == 0) == (rank < 150)
    changed = sum((pruned[f"{n}.q"] != plain.tensors[f"{n}.q"]).sum().item() for n in NAMES)
    assert changed == 150


def test_pruning_leaves_other_grids_alone_and_ends_when_no_one_is_left():
    grid = GridConfig(bits=5)
    plain, pruned = quantized(attn=grid), quantized(attn=grid, prune_ones=10**6)
    assert torch.equal(pruned.tensors[f"{NAMES[1]}.q"], plain.tensors[f"{NAMES[1]}.q"])
    assert not any((pruned.tensors[f"{NAMES[i]}.q"].abs() == 1).any() for i in (0, 2))
    assert prune_ones({}, {}, 3) == {}


def test_corrections_go_to_the_largest_weighted_errors_if_asked():
    state, hessians, sources = model()
    plain = quantized()
    size = {"norm": {}, "weighted": {}}
    for name, W in state.items():
        E = W - dequantize(plain.tensors[f"{name}.q"], plain.tensors[f"{name}.scale"])
        size["norm"][name], size["weighted"][name] = float(E.norm()), weighted_error(E, hessians[sources[name]])
    chosen = {kind: {max(sizes, key=sizes.get)} for kind, sizes in size.items()}
    assert chosen["norm"] != chosen["weighted"]
    for kind, names in chosen.items():
        assert corrected_names(quantized(lqer=LqerConfig(top_k=1, by=kind)).tensors) == names
