"""Dead inputs, singular Hessians, constant rows, broken numbers under every scheme: a defined result or one error."""

import pytest
import torch

from pgolf.errors import InputError
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore

NAME = "blocks.0.mlp.fc.weight"
SCHEMES = [
    {"method": "rtn"},
    {"steps": "percentile", "method": "rtn"},
    {"steps": "percentile_row"},
    {"steps": "extreme", "least_max": 1.0},
    {"hessian_aware": 0.175},
    {"rate": 0.12},
    {"columns": "activation"},
    {"columns": "loss"},
    {"steps": "loss"},
    {"row_block": 3},
    {"steps": "loss", "row_block": 4, "columns": "loss", "rate": 0.12, "dedup": "even"},
]


def problem():
    generator = torch.Generator().manual_seed(0)
    W, X = (torch.randn(shape, generator=generator) for shape in ((8, 24), (96, 24)))
    g = torch.randn(64, 8, generator=generator)
    return W, X.mT @ X, g.mT @ g


def quantized(W, H, G, scheme):
    config = QuantizeConfig(small_numel=0, **scheme)
    return quantize_model({NAME: W}, {"x": H, f"{NAME}.G": G}, {NAME: "x"}, config)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_dead_input_gets_no_codes_and_spoils_nothing(scheme):
    W, H, G = problem()
    H[[3, 20]], H[:, [3, 20]] = 0, 0
    done = quantized(W, H, G, scheme)
    assert torch.isfinite(restore(done.tensors)[NAME]).all()
    assert scheme.get("method") == "rtn" or not done.tensors[f"{NAME}.q"][:, [3, 20]].any()
    assert done.reports[0].relative_error < 0.2


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_singular_hessian_and_insensitive_outputs_are_damped(scheme):
    W, _, G = problem()
    x = torch.randn(1, 24, generator=torch.Generator().manual_seed(2))
    G[[1, 5]], G[:, [1, 5]] = 0, 0
    done = quantized(W, x.mT @ x, G, scheme)
    assert torch.isfinite(restore(done.tensors)[NAME]).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_row_leaves_the_others_alone(scheme, value):
    W, H, G = problem()
    W[2] = value
    found = restore(quantized(W, H, G, scheme).tensors)[NAME]
    assert torch.isfinite(found).all()
    others = [i for i in range(8) if i != 2]
    relative = (found - W)[others].norm() / W[others].norm()
    assert relative < (0.5 if scheme.get("dedup") or "row_block" in scheme else 0.35)
    if not value and "row_block" not in scheme:
        assert not found[2].any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_numbers_end_in_one_error_that_names_the_matrix(scheme, bad):
    W, H, G = problem()
    broken = W.clone()
    broken[1, 1] = bad
    with pytest.raises(InputError, match=rf"{NAME}: the weights hold NaN or infinity.*train again"):
        quantized(broken, H, G, scheme)
    for matrix in (H, G):
        kept, matrix[0, 0] = matrix[0, 0].clone(), bad
        with pytest.raises(InputError, match=rf"{NAME}: the Hessian holds NaN or infinity.*calibrate again"):
            quantized(W, H, G, scheme)
        matrix[0, 0] = kept


def test_a_hessian_that_is_no_covariance_is_named():
    W, H, G = problem()
    H[0, 1] = H[1, 0] = 1e6
    with pytest.raises(
        InputError, match=r"x: the Hessian is not positive definite with `quantize.damp` 0.01: raise it"
    ):
        quantized(W, H, G, {})
