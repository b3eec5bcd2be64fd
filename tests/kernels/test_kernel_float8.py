"""Products of 8-bit floats against their twin: operands rounded, then multiplied in double precision."""

import dataclasses

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.errors import InputError
from pgolf.kernels import activation, float8, residual_norm
from pgolf.kernels.float8 import Eighth
from pgolf.train.config import TrainConfig

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
STEP = 2**-3  # of float8_e4m3fn next to 1


def value(eighth):
    return eighth.values.double() * eighth.scale.double()


def test_a_product_is_that_of_the_rounded_operands():
    torch.manual_seed(0)
    weight = float8.round_weight(torch.randn(32, 48, device=DEVICE) * 0.02)
    assert float(weight.values.float().abs().max()) == float8.LARGEST
    for kind, scale in ((torch.float8_e4m3fn, 0.1), (torch.float8_e5m2, 1e-6)):
        x = Eighth(torch.randn(16, 48, device=DEVICE).to(kind), torch.tensor(scale, device=DEVICE))
        found, expected = float8.product(x, weight), value(x) @ value(weight).T
        assert found.dtype == torch.bfloat16
        assert float((found.double() - expected).norm() / expected.norm()) < 4e-3  # bfloat16, and fast sums on a GPU


def test_rounded_weights_are_near_and_zeros_stay_zeros():
    w = torch.randn(32, 48, device=DEVICE)
    assert float((value(float8.round_weight(w)) - w).norm() / w.norm()) < STEP / 4
    zeros = float8.round_weight(torch.zeros(32, 48, device=DEVICE))  # projections start so
    assert not value(zeros).any()


def test_a_norm_never_overflows_and_is_off_by_a_step_at_most():
    width = 64
    x = torch.zeros(2, width, device=DEVICE)
    x[0, 3], x[1] = 7.0, torch.linspace(-3, 3, width, device=DEVICE)  # one entry is the worst case
    s = torch.tensor(0.5, device=DEVICE)
    normed = residual_norm.norm_forward(x, s, eight=True)
    assert float(normed.y8.float().abs().max()) == float8.LARGEST
    found = normed.y8.double() * (float(s) * width**0.5 / float8.LARGEST)
    assert (found - normed.y).abs().max() <= STEP * normed.y.abs().max()
    errors = ((found - normed.y) / normed.y)[normed.y.abs() > 2**-5].abs()
    assert errors.quantile(1.0 if ON_GPU else 0.9) <= STEP  # the interpreter drops a carry into the exponent


def test_gradients_beyond_the_range_are_clipped():
    x = torch.tensor([1e-3, -1.0, 1e6, -1e6], device=DEVICE)
    found = activation.round_gradient(x, 16.0).float() / 16
    assert found.tolist() == pytest.approx([1e-3, -1.0, 57344 / 16, -57344 / 16], rel=2**-2)


def test_8_bits_ask_for_the_kernels():
    with pytest.raises(InputError, match="kernels: triton"):
        TrainConfig(matmul="fp8")
    assert dataclasses.replace(TrainConfig(), matmul="fp8", kernels="triton").matmul == "fp8"
