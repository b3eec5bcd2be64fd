"""The fused softcapped loss against the plain head in double precision."""

import math

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import softcap_loss
from pgolf.kernels.softcap_loss import softcap_losses
from pgolf.train.fast import LARGEST_SOFTCAP

SOFTCAP = 5.0
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def inputs(rows, width, vocab, dtype, spread=1.0):
    torch.manual_seed(0)
    hidden = torch.randn(2, rows, width, device=DEVICE).to(dtype)
    embedding = (torch.randn(vocab, width, device=DEVICE) * spread).to(dtype)
    targets = torch.randint(vocab, (2, rows), device=DEVICE)
    return hidden.requires_grad_(), embedding.requires_grad_(), targets


def plain(hidden, embedding, targets, softcap):
    capped = softcap * torch.tanh(F.linear(hidden, embedding) / softcap)
    return F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def with_gradients(function, tensors, targets, softcap, upstream):
    losses = function(*tensors, targets, softcap)
    return losses.detach(), *torch.autograd.grad(losses, tensors, upstream.to(losses.dtype))


def truth(hidden, embedding, targets, softcap, upstream):
    doubles = [tensor.detach().double().requires_grad_() for tensor in (hidden, embedding)]
    return with_gradients(plain, doubles, targets, softcap, upstream)


def distance(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def check(shape, dtype, bounds, upstream, spread=1.0, softcap=SOFTCAP):
    hidden, embedding, targets = inputs(*shape, dtype, spread)
    upstream = upstream(targets)
    found = with_gradients(softcap_losses, (hidden, embedding), targets, softcap, upstream)
    assert found[0].dtype == torch.float32
    assert [gradient.dtype for gradient in found[1:]] == [dtype, dtype]
    for got, want, bound in zip(found, truth(hidden, embedding, targets, softcap, upstream), bounds, strict=True):
        assert got.shape == want.shape
        assert distance(got, want) < bound


def mean(targets):
    return torch.full(targets.shape, 1 / targets.numel(), device=DEVICE)


def equal(targets):
    """The same as one number, as the gradient of a sum has it."""
    return torch.tensor(1 / targets.numel(), device=DEVICE).expand(targets.shape)


def selective(targets):
    """Weights of all signs and sizes, many of them zero."""
    return torch.randn(targets.shape, device=DEVICE).relu() - 0.1


@pytest.mark.parametrize("upstream", [mean, equal, selective])
@pytest.mark.parametrize("vocab", [8, 37])
def test_losses_and_gradients_are_those_of_the_plain_head(vocab, upstream):
    check((3, 16, vocab), torch.float32, (1e-6, 2e-6, 2e-6), upstream)


def test_half_precision_rounds_the_logits_and_nothing_else():
    """Bounds are some rounding errors of float16, 2^-11."""
    check((3, 16, 37), torch.float16, (2e-3, 4e-3, 4e-3), mean)


def test_saturated_logits_stay_finite():
    """|z| is hundreds of caps: gradients vanish, and a loss lies between 0 and 2 C + log V."""
    hidden, embedding, targets = inputs(3, 16, 37, torch.float32, spread=1e3)
    losses = softcap_losses(hidden, embedding, targets, SOFTCAP)
    assert (losses >= 0).all()
    assert losses.max() <= 2 * SOFTCAP + math.log(37) + 1e-4
    torch.testing.assert_close(losses, plain(hidden, embedding, targets, SOFTCAP).detach(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(losses.sum(), (hidden, embedding))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_the_largest_softcap_is_within_float32():
    """All logits at -C: the sum that the kernel takes is V exp(-2 C), the loss log V."""
    hidden, embedding = torch.ones(1, 2, 8, device=DEVICE), torch.full((37, 8), -1e3, device=DEVICE)
    losses = softcap_losses(hidden, embedding, torch.zeros(1, 2, dtype=torch.int64, device=DEVICE), LARGEST_SOFTCAP)
    assert losses.tolist() == [pytest.approx([math.log(37)] * 2, rel=1e-5)]


def test_no_upstream_gives_no_gradient():
    hidden, embedding, targets = inputs(2, 8, 8, torch.float32)
    softcap_losses(hidden, embedding, targets, SOFTCAP).backward(torch.zeros(targets.shape, device=DEVICE))
    assert not hidden.grad.any()
    assert not embedding.grad.any()


def test_residuals_have_no_gradient_that_is_made_of_zeros():
    """It would be one more matrix [tokens, vocabulary], filled in every pass."""
    hidden, embedding, targets = inputs(2, 8, 8, torch.float32)
    losses = softcap_losses(hidden, embedding, targets, SOFTCAP)
    with torch.profiler.profile(record_shapes=True) as profile:
        losses.backward(mean(targets))
    made = [event.key for event in profile.key_averages(group_by_input_shape=True) if "zero" in event.key]
    assert not made


def test_the_compiler_is_told_the_truth():
    hidden, embedding, targets = inputs(2, 8, 8, torch.float32)
    arguments = hidden[0].detach().requires_grad_(), embedding, targets[0], SOFTCAP
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(softcap_loss.losses_and_residuals, arguments, test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [1024, 8192])
@pytest.mark.parametrize("upstream", [mean, equal, selective])
def test_at_training_shapes(vocab, upstream):
    """bfloat16 rounds logits and residuals: 2^-9 each."""
    check((2048, 512, vocab), torch.bfloat16, (1e-3, 6e-3, 6e-3), upstream, spread=0.3, softcap=30.0)
