"""All schemes on a GPU, where matrices of one shape are solved together: the CPU's codes but for close calls."""

import time

import pytest
import torch

from pgolf.codec.trellis import recognised
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.artifact import parameter_shapes
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.quantize import exact_products, quantize_model
from pgolf.quant.trellis import nearest_levels

TINY = ModelConfig(
    layers=3, dim=32, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=2,
    loop_start=1, loop_end=1, loop_runs=2,
)  # fmt: skip


def inputs(config, vocab_size):
    generator = torch.Generator().manual_seed(0)

    def covariance(n):
        X = torch.randn(2 * n, n, generator=generator) * torch.exp(0.5 * torch.randn(n, generator=generator))
        return X.mT @ X

    shapes, sources = parameter_shapes(config, vocab_size), matrix_inputs(config)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    hessians = {source: covariance(shapes[name][1]) for name, source in sources.items()}
    for name in sources:
        embed = name == "tok_emb.weight"
        hessians[f"{name}.G"] = torch.rand(vocab_size, generator=generator) if embed else covariance(shapes[name][0])
    return state, hessians, sources


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", [
    {}, {"rate": 0.12}, {"steps": "loss"}, {"steps": "loss", "row_block": 8}, {"columns": "loss"}, {"method": "rtn"},
    {"hessian_aware": 0.2}, {"prune_ones": 99, "dedup": "even"}, {"method": "ternary", "mlp": GridConfig(bits=2)},
], ids=str)  # fmt: skip
def test_codes_are_those_of_the_cpu(scheme):
    state, hessians, sources = inputs(TINY, 50)
    config = QuantizeConfig(small_numel=100, **scheme)
    devices = torch.device("cpu"), torch.device("cuda")
    cpu, gpu = (quantize_model(state, hessians, sources, config, device=device) for device in devices)
    assert set(gpu.tensors) == set(cpu.tensors)
    assert [report.name for report in gpu.reports] == [report.name for report in cpu.reports]
    for key, tensor in cpu.tensors.items():
        assert gpu.tensors[key].device.type == "cpu"
        assert (gpu.tensors[key] != tensor).double().mean() < 0.01, key


@pytest.mark.gpu
@pytest.mark.parametrize("states", [8, 64, 256])
def test_the_search_of_a_trellis_finds_what_the_one_on_the_cpu_finds(states):
    x = torch.randn(5, 700, generator=torch.Generator().manual_seed(0)) * 6
    cpu, gpu = nearest_levels(x, states), nearest_levels(x.cuda(), states).cpu()
    assert (cpu != gpu).double().mean() < 0.01  # close calls
    torch.testing.assert_close((x - gpu).square().sum(1), (x - cpu).square().sum(1), rtol=1e-4, atol=0)
    assert recognised(gpu.T[None].to(torch.int8).numpy()) == states


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["gptq", "trellis"])
def test_all_matrices_of_the_published_model_take_five_seconds(method):
    state, hessians, sources = inputs(ModelConfig(), 8192)
    hessians = {name: H.cuda() for name, H in hessians.items()}
    config = QuantizeConfig(method=method)
    quantize_model(state, hessians, sources, config)  # loads the libraries
    start = time.perf_counter()
    done = quantize_model(state, hessians, sources, config)
    assert len(done.reports) == 67
    assert time.perf_counter() - start < 5.0


def test_products_are_exact_inside_only():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    with exact_products():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before
