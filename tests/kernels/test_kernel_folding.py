"""Weights folded and gradients unfolded, against float64."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import folding

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTH, INNER, KEYS, UNITS = 24, 16, 8, 40  # some are no powers of two


def random(*shape):
    return torch.randn(shape, device=DEVICE)


def matrices():
    torch.manual_seed(0)
    shapes = (INNER, WIDTH), (KEYS, WIDTH), (KEYS, WIDTH), (WIDTH, INNER), (UNITS, WIDTH), (WIDTH, UNITS)
    return tuple(random(*shape) for shape in shapes), (random(WIDTH), random(WIDTH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [False, True])
def test_fold(gated, dtype):
    (query, key, value, out, up, down), (a, m) = matrices()
    gate, rows = (random(2, 12), 5) if gated else (None, 0)
    found = folding.fold(folding.Matrices(query, key, value, gate, up, out, down), rows, a, m, dtype)
    widened = torch.zeros(rows, WIDTH, device=DEVICE)
    if gated:
        widened[:2, :12] = gate
    expected = torch.cat([query, key, value, widened]), up, a[:, None].double() * out, m[:, None].double() * down
    bound = 1e-6
    if dtype == torch.bfloat16:  # one rounding: half of the last place, a whole one where the interpreter cuts off
        bound = 2**-8 if DEVICE == "cuda" else 2**-7
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == wanted.shape
        torch.testing.assert_close(ours.double(), wanted.double(), rtol=bound, atol=0)


def test_unfold_is_the_gradient_of_folding():
    (*_, out, _, down), scales = matrices()
    g = tuple(random(*w.shape) for w in (out, down))
    leaves = [x.double().requires_grad_() for x in (out, down, *scales)]
    products = [scale[:, None] * w for w, scale in zip(leaves[:2], leaves[2:], strict=True)]
    expected = torch.autograd.grad(products, leaves, [each.double() for each in g])
    of_scales = folding.unfold(g, (out, down), scales)
    for ours, wanted in zip((*g, *of_scales), expected, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
