"""Weights folded and gradients unfolded, against float64."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import rounded_weights

from pgolf.kernels import float8, folding

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


def rounded(dtype, given=None):
    """What is folded and rounded, and what float8's own functions make of it on a CPU (CUDA divides by multiplying)."""
    (query, key, value, out, up, down), (a, m) = given or matrices()
    w = folding.Matrices(query, key, value, random(2, 12), up, out, down)
    folded, found = folding.fold_and_round(w, 5, a, m, dtype)
    for ours, alone in zip(folded, folding.fold(w, 5, a, m, dtype), strict=True):
        assert torch.equal(ours, alone)
    read, up, _, down = folded
    expected = [rounded_weights.round_weight(each.cpu()) for each in (read[:-5], up, down)]
    assert all(each.values.is_contiguous() for each in found)
    found = tuple(float8.Eighth(*(x.cpu() for x in each)) for each in found)
    return found, (*expected, *map(rounded_weights.turned, expected[1:]))


def check_rounded(found, expected, differ):
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.equal(ours.scale, wanted.scale)
        assert ours.scale.shape == ()
        assert ours.values.shape == wanted.values.shape
        assert float((ours.values.float() != wanted.values.float()).float().mean()) <= differ


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("tile", [16, 64])
def test_fold_and_round(dtype, rows, tile, monkeypatch):
    monkeypatch.setattr(folding, "FOLD_ROWS", rows)
    monkeypatch.setattr(folding, "ROUND_TILE", tile)
    found, expected = rounded(dtype)
    check_rounded(found, expected, 0.0 if DEVICE == "cuda" else 0.1)  # the interpreter drops a carry into the exponent
    for across, along in ((found[3], found[1]), (found[4], found[2])):
        assert torch.equal(across.values.float(), along.values.float().T)


def test_zeros_are_rounded_to_zeros():
    w, scales = matrices()
    found, expected = rounded(torch.bfloat16, ((*w[:-1], torch.zeros_like(w[-1])), scales))
    assert torch.equal(found[2].scale, expected[2].scale)
    assert not found[2].values.float().any()
    assert found[1].values.float().any()


@pytest.mark.gpu
def test_rounded_at_training_shapes():
    """On a GPU every number is the one that a CPU finds."""
    torch.manual_seed(0)
    shapes = (512, 512), (256, 512), (256, 512), (512, 512), (2048, 512), (512, 2048)
    found, expected = rounded(torch.bfloat16, (tuple(random(*shape) for shape in shapes), (random(512), random(512))))
    check_rounded(found, expected, 0.0)


def test_unfold_is_the_gradient_of_folding():
    (*_, out, _, down), scales = matrices()
    g = tuple(random(*w.shape) for w in (out, down))
    leaves = [x.double().requires_grad_() for x in (out, down, *scales)]
    products = [scale[:, None] * w for w, scale in zip(leaves[:2], leaves[2:], strict=True)]
    expected = torch.autograd.grad(products, leaves, [each.double() for each in g])
    of_scales = folding.unfold(g, (out, down), scales)
    for ours, wanted in zip((*g, *of_scales), expected, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
