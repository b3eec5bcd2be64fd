"""The fused LeakyReLU^2 MLP against the plain one in double precision."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import leaky_mlp as kernels
from pgolf.kernels.leaky_mlp import leaky_mlp

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
SMALL = kernels.Tile(tokens=16, units=128, depth=16, warps=4, stages=2)


def inputs(tokens, width, units, dtype):
    torch.manual_seed(0)
    shapes = [(1, tokens, width), (units, width), (width, units)]
    scales = [1.0, width**-0.5, units**-0.5]
    return [
        (torch.randn(shape, device=DEVICE) * scale).to(dtype).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def plain(n, up, down, slope):
    return F.linear(F.leaky_relu(F.linear(n, up), slope).square(), down)


def distance(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def errors(shape, dtype, slope):
    """Relative distances to the truth of y and the gradients of n, up and down."""
    tensors = inputs(*shape, dtype)
    upstream = torch.randn_like(tensors[0])
    found = leaky_mlp(*tensors, slope)
    gradients = torch.autograd.grad(found, tensors, upstream)
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = plain(*doubles, slope)
    wanted = torch.autograd.grad(expected, doubles, upstream.double())
    assert found.dtype == dtype
    assert [gradient.dtype for gradient in gradients] == [dtype] * 3
    return [distance(*pair) for pair in zip((found, *gradients), (expected, *wanted), strict=True)]


@pytest.fixture
def small(monkeypatch):
    """Tiles smaller than the tensors, so that there are several, and edges in every direction."""
    if not ON_GPU:
        monkeypatch.setattr(kernels, "TILE", SMALL)


@pytest.mark.parametrize("slope", [-0.5, 0.0])
def test_values_and_gradients_are_those_of_the_plain_mlp(small, slope):
    assert max(errors((37, 24, 192), torch.float32, slope)) < (1e-2 if ON_GPU else 2e-6)  # tf32 on a GPU


def test_half_precision_rounds_what_it_stores(small):
    """Some rounding errors of float16, 2^-11."""
    assert max(errors((37, 24, 64), torch.float16, 0.5)) < 3e-3


def test_every_sign_is_kept(small):
    """One weight at a time: unit u of token t is negative exactly where x_t is."""
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0], device=DEVICE)
    n, up, down = (torch.zeros(shape, device=DEVICE) for shape in ((5, 8), (64, 8), (8, 64)))
    n[:, 0] = signs
    up[torch.arange(64), 0] = torch.where(torch.arange(64, device=DEVICE) % 3 == 0, -1.0, 1.0)
    _, f, packed = kernels.forward(n, up, down, 0.5)
    negative = (signs[:, None] * up[:, 0]) < 0
    torch.testing.assert_close(f, torch.where(negative, 0.25, 1.0))
    bits = packed.view(5, 1, 8) >> torch.arange(8, device=DEVICE).view(1, 8, 1) & 1  # token, b, c
    assert torch.equal(bits.flatten(1).bool(), negative)


def test_the_compiler_is_told_the_truth(small):
    n, up, down = inputs(5, 8, 64, torch.float32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(kernels.forward, (n[0].detach().requires_grad_(), up, down, 0.5), test_utils=checks)
    y, f, signs = kernels.forward(n[0].detach(), up.detach(), down.detach(), 0.5)
    torch.library.opcheck(kernels.backward, (y, down.detach(), f, signs, 0.5), test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [16384, 4100])
def test_at_training_shapes(tokens):
    """Not farther from the truth than bfloat16 in plain torch, up to a tenth."""
    tensors = inputs(tokens, 512, 2048, torch.bfloat16)
    upstream = torch.randn_like(tensors[0])
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    runs = [
        (function(*inputs_, 0.5), inputs_)
        for function, inputs_ in ((leaky_mlp, tensors), (plain, tensors), (plain, doubles))
    ]
    mine, theirs, truth = ((y, *torch.autograd.grad(y, of, upstream.to(y.dtype))) for y, of in runs)
    for found, other, expected in zip(mine, theirs, truth, strict=True):
        assert distance(found, expected) < 1.1 * distance(other, expected) < 1e-2
