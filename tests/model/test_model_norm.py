import pytest
import torch
import torch.nn.functional as F

from pgolf.model.norm import EPS, _EagerRMSNorm, rms_norm


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_EagerRMSNorm.apply, (x,), eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("std", [1.0, 5e-3, 1e-4], ids=["unit", "embedding", "near eps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_autograd_of_torchs_own(std, dtype):
    torch.manual_seed(1)
    mine = (torch.randn(5, 3, 16, dtype=dtype) * std).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    weight = torch.randn(5, 3, 16, dtype=dtype)
    y, reference = _EagerRMSNorm.apply(mine), F.rms_norm(theirs, (16,), eps=EPS)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(y, reference, rtol=tolerance, atol=tolerance)
    (y * weight).sum().backward()
    (reference * weight).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=10 * tolerance, atol=tolerance / std)


def test_gradient_of_a_view_and_of_zeros():
    """Heads are normalised as non-contiguous views; a zero vector has a large but finite gradient."""
    torch.manual_seed(2)
    whole = torch.randn(2, 6, 8, requires_grad=True)
    y = rms_norm(whole.transpose(0, 1)[..., ::2])
    torch.testing.assert_close(y.square().mean(-1), torch.ones(6, 2), rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert whole.grad is not None
    assert whole.grad[..., 1::2].abs().max() == 0
    zero = torch.zeros(1, 4, requires_grad=True)
    rms_norm(zero).sum().backward()
    torch.testing.assert_close(zero.grad, torch.full((1, 4), EPS**-0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unit_root_mean_square_even_at_the_embeddings_scale(dtype):
    """An eps of 7.8e-3, once torch's default for bfloat16, would leave 0.06 here."""
    torch.manual_seed(3)
    y = rms_norm((torch.randn(4, 512) * 0.005).to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float().square().mean(-1).sqrt(), torch.ones(4), rtol=0.01, atol=0.01)


def test_scale_of_the_input_drops_out():
    x = torch.randn(3, 32)
    torch.testing.assert_close(rms_norm(100 * x), rms_norm(x), rtol=1e-5, atol=1e-5)
