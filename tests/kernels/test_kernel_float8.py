"""Numbers of 8 bits are near those that they stand for."""

import dataclasses

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import rounded_weights

from pgolf.errors import InputError
from pgolf.kernels import float8, residual_norm, row_factors
from pgolf.kernels.rounded_rows import round_rows
from pgolf.train.config import TrainConfig

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
STEP = 2**-3  # of float8_e4m3fn next to 1


def value(eighth):
    return eighth.values.double() * eighth.scale.double()


def test_rounded_weights_are_near_and_zeros_stay_zeros():
    w = torch.randn(32, 48, device=DEVICE)
    assert float((value(rounded_weights.round_weight(w)) - w).norm() / w.norm()) < STEP / 4
    zeros = rounded_weights.round_weight(torch.zeros(32, 48, device=DEVICE))  # projections start so
    assert not value(zeros).any()


@pytest.mark.parametrize("mixed", [True, False])
def test_a_stream_is_off_by_a_step_at_most_and_clipped(mixed):
    torch.manual_seed(0)
    x = torch.randn(12, 48, device=DEVICE) * 3
    x[0, :2] = torch.tensor([1e4, -1e4])
    s, one = torch.tensor(0.5, device=DEVICE), torch.ones(2, 48, device=DEVICE)
    if mixed:
        found = residual_norm.norm_forward(x, s, torch.zeros_like(x), one, eight=True, unit=False).h8
    else:
        found = torch.empty_like(x, dtype=float8.KIND)
        row_factors.norm_factors(x, s, h8=found)
    assert found[0, :2].tolist() == [float8.LARGEST, -float8.LARGEST]
    wrong = (found.float() - x).abs() / x.abs()  # the interpreter drops a carry into the exponent
    assert wrong[1:][x[1:].abs() > 2**-6].quantile(1.0 if ON_GPU else 0.9) <= STEP / 2


def test_rows_of_any_size_keep_their_largest_entry_and_zeros_stay_zeros():
    torch.manual_seed(0)
    sizes = torch.tensor([1.0, 0.0, 1e-12, 1e3, 1e-6, 448.0, 3e-38], device=DEVICE)
    g = (torch.randn(7, 48, device=DEVICE) * sizes[:, None]).bfloat16()
    factor, scale = torch.linspace(0.5, 2, 7, device=DEVICE), torch.tensor(0.25, device=DEVICE)
    values, size, scaled = round_rows(g, factor, scale)
    assert torch.equal(scaled, size * factor / float8.OF_HIDDEN)
    assert bool(size.isfinite().all() and values.float().isfinite().all())
    assert not values[1].float().any()
    assert values.float().abs().amax(1)[[0, 2, 3, 4, 5]].tolist() == [float8.LARGEST] * 5
    exact, found = g.double(), values.double() * (size / scale)[:, None].double()
    most = exact.abs().amax(1, keepdim=True)
    regular = (exact.abs() > most * 2**-6 / float8.LARGEST) & (most > 1e-30)
    wrong = ((found - exact).abs() / exact.abs())[regular]
    assert len(wrong) > 4 * 48
    assert wrong.quantile(1.0 if ON_GPU else 0.9) <= STEP / 2 * (1 + 1e-6)  # the interpreter drops a carry, as above
    assert float((found[6] - exact[6]).abs().max()) < 1e-30


def test_transposed_weights_are_the_same():
    w = rounded_weights.round_weight(torch.randn(32, 48, device=DEVICE))
    found = rounded_weights.turned(w)
    assert found.values.is_contiguous()
    assert torch.equal(value(found), value(w).T)


def test_8_bits_ask_for_the_kernels():
    with pytest.raises(InputError, match="kernels: triton"):
        TrainConfig(matmul="fp8")
    assert dataclasses.replace(TrainConfig(), matmul="fp8", kernels="triton").matmul == "fp8"
