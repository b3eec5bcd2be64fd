"""GPTQ against a slow twin in float64 that follows the formulas column by column, and its limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import InputError
from pgolf.quant.gptq import gptq_quantize, weighted_error
from pgolf.quant.grid import dequantize, round_to_nearest, sdclip_scale


def problem(seed, rows=8, columns=24, tokens=96, mixing=0.3):
    """Weights, and a Hessian of correlated inputs of unequal variance."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator)
    mix = torch.eye(columns) + mixing * torch.randn(columns, columns, generator=generator)
    size = torch.exp(0.7 * torch.randn(columns, generator=generator))
    X = torch.randn(tokens, columns, generator=generator) @ mix * size
    return W, X.mT @ X


def slow_gptq(W, H, scale, clip, damp=0.01):
    """Codes, and the distance of the closest decision from a tie, in steps."""
    W, H, n = W.double().clone(), H.double().clone(), H.size(0)
    dead = [j for j in range(n) if H[j, j] == 0]
    for j in dead:
        H[j, j] = 1.0
    mean = sum(H[j, j].item() for j in range(n)) / n
    for j in range(n):
        H[j, j] += damp * mean
    order = sorted(range(n), key=lambda j: -H[j, j].item())
    for j in dead:
        W[:, j] = 0
    W, H = W[:, order], H[order][:, order]
    U = torch.linalg.cholesky(torch.linalg.inv(H)).mT
    codes = torch.zeros(W.shape, dtype=torch.int64)
    margin = 0.5
    for j in range(n):
        for i in range(W.size(0)):
            s = scale[i].double().item()
            steps = W[i, j].item() / s
            q = max(-clip, min(clip, round(steps)))
            if abs(steps) < clip + 1:
                margin = min(margin, abs(abs(steps - round(steps)) - 0.5))
            codes[i, order[j]] = q
            W[i, j:] -= (W[i, j] - q * s) / U[j, j] * U[j, j:]
    return codes.to(torch.int8), margin


@pytest.mark.parametrize("blocksize", [1, 5, 8, 24, 128])
def test_codes_equal_the_slow_twin(blocksize):
    compared = 0
    for seed in range(10):
        W, H = problem(seed)
        scale = sdclip_scale(W, 12.85, 31)
        expected, margin = slow_gptq(W, H, scale, 31)
        if margin > 1e-3:  # float32 may break a closer tie the other way
            compared += 1
            assert torch.equal(gptq_quantize(W, H, scale, 31, blocksize=blocksize), expected), seed
    assert compared >= 5


def test_codes_equal_the_slow_twin_for_other_damping_width_and_shape():
    compared = 0
    for seed in range(8):
        W, H = problem(seed, rows=3, columns=40, tokens=20)  # fewer tokens than columns: H is singular
        scale = sdclip_scale(W, 6.0, 7)
        expected, margin = slow_gptq(W, H, scale, 7, damp=0.1)
        if margin > 1e-3:
            compared += 1
            assert torch.equal(gptq_quantize(W, H, scale, 7, damp=0.1, blocksize=16), expected), seed
    assert compared >= 4


def test_slow_twin_disagrees_with_rounding():
    W, H = problem(0)
    scale = sdclip_scale(W, 12.85, 31)
    assert not torch.equal(slow_gptq(W, H, scale, 31)[0], round_to_nearest(W, scale, 31))


@pytest.mark.parametrize("unequal", [False, True])
def test_uncorrelated_inputs_give_rounding_in_the_original_order(unequal):
    W = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    H = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(4)) + 0.1) if unequal else torch.eye(64)
    scale = sdclip_scale(W, 12.85, 31)
    assert torch.equal(gptq_quantize(W, H, scale, 31, blocksize=16), round_to_nearest(W, scale, 31))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 1.0]), st.sampled_from([7, 31]))
def test_weighted_error_is_never_above_rounding(seed, mixing, clip):
    W, H = problem(seed, rows=32, columns=48, tokens=200, mixing=mixing)
    scale = sdclip_scale(W, 12.85 * clip / 31, clip)
    error = weighted_error(W - dequantize(gptq_quantize(W, H, scale, clip), scale), H)
    assert error <= weighted_error(W - dequantize(round_to_nearest(W, scale, clip), scale), H)


def test_weighted_error_is_far_below_rounding_on_average():
    ratios = []
    for seed in range(20):
        W, H = problem(seed, rows=32, columns=48, tokens=200)
        scale = sdclip_scale(W, 12.85, 31)
        error = weighted_error(W - dequantize(gptq_quantize(W, H, scale, 31), scale), H)
        ratios.append(error / weighted_error(W - dequantize(round_to_nearest(W, scale, 31), scale), H))
    assert sum(ratios) / len(ratios) < 0.7


def test_weighted_error_is_the_rise_of_the_output_error():
    generator = torch.Generator().manual_seed(5)
    X, E = torch.randn(50, 6, generator=generator).double(), torch.randn(4, 6, generator=generator).double()
    assert weighted_error(E, X.mT @ X) == pytest.approx((X @ E.mT).square().sum().item(), rel=1e-12)


def test_dead_columns_get_zero_codes_and_leave_the_rest_alone():
    W, H = problem(1)
    dead = [0, 7, 23]
    H[dead], H[:, dead] = 0, 0
    scale = sdclip_scale(W, 12.85, 31)
    codes = gptq_quantize(W, H, scale, 31)
    assert not codes[:, dead].any()
    assert codes[:, [1, 2, 3]].any()
    expected, margin = slow_gptq(W, H, scale, 31)
    assert margin < 1e-3 or torch.equal(codes, expected)


def test_inputs_that_were_never_active_give_zero_codes():
    W, _ = problem(2)
    assert not gptq_quantize(W, torch.zeros(24, 24), sdclip_scale(W, 12.85, 31), 31).any()


@pytest.mark.parametrize("tokens", [1, 4])
def test_singular_hessian_is_damped(tokens):
    W, H = problem(3, tokens=tokens)
    scale = sdclip_scale(W, 12.85, 31)
    error = weighted_error(W - dequantize(gptq_quantize(W, H, scale, 31), scale), H)
    assert error <= weighted_error(W - dequantize(round_to_nearest(W, scale, 31), scale), H)


def test_row_of_zeros_gets_zero_codes_beside_ordinary_rows():
    W, H = problem(4)
    W[3] = 0
    codes = gptq_quantize(W, H, sdclip_scale(W, 12.85, 31), 31)
    assert not codes[3].any()
    assert codes[2].any()


def test_constant_row_is_clipped_and_does_not_touch_other_rows():
    W, H = problem(5)
    scale = sdclip_scale(W, 12.85, 31)
    before = gptq_quantize(W, H, scale, 31)
    W[3] = 0.25
    codes = gptq_quantize(W, H, sdclip_scale(W, 12.85, 31), 31)
    others = [i for i in range(8) if i != 3]
    assert torch.equal(codes[others], before[others])
    assert codes[3].abs().max() == 31


def test_rows_are_independent():
    W, H = problem(6)
    scale = sdclip_scale(W, 12.85, 31)
    order = [5, 0, 7, 1, 6, 2, 4, 3]
    assert torch.equal(gptq_quantize(W[order], H, scale[order], 31), gptq_quantize(W, H, scale, 31)[order])


def test_scaling_the_hessian_changes_nothing():
    W, H = problem(7)
    scale = sdclip_scale(W, 12.85, 31)
    assert torch.equal(gptq_quantize(W, H, scale, 31), gptq_quantize(W, 1024 * H, scale, 31))


def test_arguments_are_left_as_they_were():
    W, H = problem(8)
    H[2], H[:, 2] = 0, 0
    scale = sdclip_scale(W, 12.85, 31)
    kept = W.clone(), H.clone(), scale.clone()
    gptq_quantize(W, H, scale, 31)
    assert all(torch.equal(a, b) for a, b in zip((W, H, scale), kept, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_a_remedy(bad):
    W, H = problem(9)
    scale = sdclip_scale(W, 12.85, 31)
    broken = W.clone()
    broken[2, 3] = bad
    with pytest.raises(InputError, match=r"weights hold NaN or infinity.*train again"):
        gptq_quantize(broken, H, sdclip_scale(broken, 12.85, 31), 31)
    H[1, 1] = bad
    with pytest.raises(InputError, match=r"Hessian holds NaN or infinity.*calibrate again"):
        gptq_quantize(W, H, scale, 31)


def test_hessian_that_is_not_positive_definite_is_refused_with_a_remedy():
    W, _ = problem(10, columns=2)
    with pytest.raises(InputError, match=r"not positive definite with `quantize.damp` 0.01: raise it"):
        gptq_quantize(W, torch.tensor([[1.0, 5.0], [5.0, 1.0]]), sdclip_scale(W, 12.85, 31), 31)
