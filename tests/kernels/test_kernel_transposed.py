"""Gradients of weights from operands of 8 bits against double precision."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import transposed
from pgolf.kernels.float8 import KIND, LARGEST

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
TRAINING = pytest.mark.gpu
STEP = 2**-3  # of float8_e4m3fn next to 1
LEAST_STEP = 2**-9


def value(eighth):
    return eighth.values.double() * eighth.scale.double()


def off(found, wanted):
    return float((found.double() - wanted).norm() / wanted.norm())


def spread(tokens, width, dtype=torch.float32):
    """Rows that differ by an order of magnitude."""
    return (torch.randn(tokens, width, device=DEVICE) * torch.randn(tokens, 1, device=DEVICE).mul(0.7).exp()).to(dtype)


SIZES = [
    pytest.param(77, 24, torch.float32, id="small"),  # fill no program, and the width is no power of two
    pytest.param(300, 136, torch.float32, id="programs"),
    pytest.param(98_304, 512, torch.bfloat16, id="training", marks=TRAINING),
]


@pytest.mark.parametrize(("tokens", "width", "dtype"), SIZES)
@pytest.mark.parametrize("size", [1e-7, 3.0])
def test_transposed_rows_are_near_and_typical_entries_below_1(tokens, width, dtype, size):
    torch.manual_seed(0)
    x, factor = spread(tokens, width, dtype), torch.rand(tokens, device=DEVICE) * size
    found = transposed.transposed(x, factor)
    wanted = (x.double() * factor.double()[:, None]).T
    assert found.values.shape == wanted.shape
    assert found.values.is_contiguous()
    assert float(found.scale).hex().startswith("0x1.0000000000000p")  # a power of two adds no rounding
    assert 2**-6 < float(found.values.float().square().mean().sqrt()) < 2**-2
    assert_rounded(found, wanted)
    assert_rounded(transposed.transposed(x), x.double().T)


def assert_rounded(found, wanted):
    """Each number to half a step, of its own or below 2^-6. The interpreter drops a carry into the exponent of some and
    most of the rounding below 2^-6.
    """
    half = (wanted.abs() * STEP / 2).clamp(min=found.scale.double() * LEAST_STEP / 2)
    right = (value(found) - wanted).abs() <= half * (1 + 1e-5)  # the kernel multiplies in float32
    normal = found.values.float().abs() > 2**-6
    assert normal.double().mean() > 0.3
    assert right[normal | ON_GPU].double().mean() >= (1.0 if ON_GPU else 0.9)


def test_zeros_stay_zeros_and_outliers_are_clipped():
    x = torch.zeros(64, 24, device=DEVICE)
    assert not value(transposed.transposed(x)).any()
    x = torch.ones(64, 24, device=DEVICE)
    x[1, 2], x[1, 3] = 1e6, -1e6
    found = transposed.transposed(x)
    assert found.values[2:4, 1].float().tolist() == [448.0, -448.0]


@pytest.mark.parametrize("tokens", [320, pytest.param(98_304, marks=TRAINING)])
def test_weight_gradient_is_that_of_its_operands(tokens):
    torch.manual_seed(0)
    g, x = transposed.transposed(spread(tokens, 48)), transposed.transposed(spread(tokens, 32))
    found = transposed.weight_gradient8(g, x)
    assert found.dtype == torch.float32
    assert off(found, value(g) @ value(x).T) < 1e-3


def well_rounded(x, factor=None):
    """With the kernel's own scale, but in the interpreter rounded by torch."""
    found = transposed.transposed(x, factor)
    if ON_GPU:
        return found
    units = (x if factor is None else x * factor[:, None]).T / found.scale
    return found._replace(values=units.clamp(-LARGEST, LARGEST).to(KIND))


@pytest.mark.parametrize("tokens", [4_096, pytest.param(98_304, marks=TRAINING)])
@pytest.mark.parametrize("spread_of_rows", [0.0, 1.0, 2.0])
def test_rows_of_any_size_give_a_gradient_as_near_as_its_operands(tokens, spread_of_rows):
    """The largest are some thousand times typical ones; some rows that the scale is found from have none."""
    torch.manual_seed(0)
    a, b = torch.randn(tokens, 48, device=DEVICE), torch.randn(tokens, 32, device=DEVICE)
    sizes = torch.randn(tokens, device=DEVICE).mul(spread_of_rows).exp() * 1e-9
    sizes[:: max(1, 4 * tokens // transposed.SAMPLES)] = 0
    found = transposed.weight_gradient8(well_rounded(a), well_rounded(b, sizes))
    wrong = off(found, a.double().T @ (b.double() * sizes.double()[:, None]))
    assert wrong < STEP / 2
    assert wrong > STEP / 8, "nothing is rounded"
