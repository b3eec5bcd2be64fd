"""Muon's relatives: NorMuon, Mousse, Huber decay, late rates, low-precision momentum."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pgolf.train.config import LateConfig, MuonConfig
from pgolf.train.huber import decay_
from pgolf.train.mousse import precondition
from pgolf.train.muon import POLAR_EXPRESS, Muon, newton_schulz, unit_rows

NONE_LATE = LateConfig()


def update_of(config, grad, name="w", late=NONE_LATE):
    """Minus the change of a zero weight after one step with rate 1."""
    parameter = nn.Parameter(torch.zeros_like(grad))
    parameter.grad = grad.clone()
    Muon({name: parameter}, config, torch.float32, late).step(1.0, 0.9)
    return -parameter.data


def test_polar_express_band_of_the_specification():
    """[.859, 1.141] and median 1.007 for a Gaussian 512 x 2048; a percent for the draw."""
    torch.manual_seed(7)
    x = newton_schulz(torch.randn(1, 512, 2048), 5, POLAR_EXPRESS)[0].double()
    values = torch.linalg.eigvalsh(x @ x.mT).sqrt()
    assert 0.859 - 0.01 < values.min() < 0.875
    assert 1.125 < values.max() < 1.141 + 0.003
    assert values.median().item() == pytest.approx(1.007, abs=0.01)


@pytest.mark.parametrize("row_norm", [True, False])
def test_normuon_rows_have_equal_norm(row_norm):
    torch.manual_seed(0)
    for shape, factor in (((128, 32), 2.0), ((32, 128), 1.0), ((48, 48), 1.0)):
        grad = torch.randn(shape) * torch.logspace(-2, 2, shape[0])[:, None]
        norms = update_of(MuonConfig(post_row_norm=True, row_norm=row_norm), grad).norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, factor), rtol=1e-5, atol=0)
        plain = update_of(MuonConfig(row_norm=row_norm), grad).norm(dim=1)
        assert plain.max() / plain.min() > 1.01


def test_normuon_doubles_an_up_projection_and_hardly_changes_a_wide_one():
    """A matrix of 4 d x d has rows of norm 1/2 after orthogonalisation, wide matrices have 1."""
    torch.manual_seed(1)
    for shape, ratio in (((512, 128), 2.0), ((128, 512), 1.0)):
        grad = torch.randn(shape)
        configs = [MuonConfig(post_row_norm=on, newton_schulz="polar_express") for on in (True, False)]
        after, before = (update_of(config, grad).norm() for config in configs)
        assert (after / before).item() == pytest.approx(ratio, rel=0.05)


def test_unit_rows_leave_zero_rows_and_clamp_small_ones():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-9, 4e-9]])
    torch.testing.assert_close(unit_rows(x, 1e-7), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.03, 0.04]]))
    low = unit_rows(torch.randn(4, 300).bfloat16(), 1e-7)
    assert low.dtype == torch.bfloat16
    assert (low.float().norm(dim=1) - 1).abs().max() < 0.01


def test_mousse_equals_a_loop_over_entries():
    rng = np.random.default_rng(0)
    shape = (3, 5)
    rows, cols = np.ones(3), np.ones(5)
    state = torch.ones(1, 3, 1, dtype=torch.float64), torch.ones(1, 1, 5, dtype=torch.float64)
    for scale in (1.0, 30.0, 0.01, 0.0):
        u = rng.normal(size=shape) * scale
        for i in range(3):
            rows[i] = 0.99 * rows[i] + 0.01 * sum(u[i, j] ** 2 for j in range(5)) / 5
        for j in range(5):
            cols[j] = 0.99 * cols[j] + 0.01 * sum(u[i, j] ** 2 for i in range(3)) / 3
        expected = [[u[i, j] / (rows[i] ** 0.5 * cols[j] ** 0.5) for j in range(5)] for i in range(3)]
        found = precondition(torch.from_numpy(u)[None], *state)[0]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_mousse_preconditions_the_nesterov_update_of_every_stack():
    torch.manual_seed(2)
    names = ("blocks.0.mlp.fc.weight", "blocks.1.mlp.fc.weight", "blocks.0.mlp.proj.weight")
    parameters = {n: nn.Parameter(torch.zeros((8, 4) if "fc" in n else (4, 8))) for n in names}
    config = MuonConfig(mousse=True, row_norm=False, weight_decay=0.0)
    muon = Muon(parameters, config, torch.float64)
    buffers = {n: torch.zeros_like(p) for n, p in parameters.items()}
    squares = {n: (torch.ones(1, p.size(0), 1), torch.ones(1, 1, p.size(1))) for n, p in parameters.items()}
    for _ in range(3):
        expected = {}
        for n, p in parameters.items():
            p.grad = torch.randn_like(p)
            buffers[n] = 0.9 * buffers[n] + p.grad
            u = precondition((p.grad + 0.9 * buffers[n])[None], *squares[n])
            x = newton_schulz(u.double(), 5)[0].float() * max(1, p.size(0) / p.size(1)) ** 0.5
            expected[n] = p.detach() - 0.1 * x
        muon.step(0.1, 0.9)
        for n, p in parameters.items():
            torch.testing.assert_close(p.data, expected[n])
    assert {"8x4", "4x8", "8x4.rows", "8x4.cols", "4x8.rows", "4x8.cols"} == set(muon.gathered())


def test_huber_decay_is_the_gradient_of_hubers_function():
    p = torch.linspace(-1, 1, 401, dtype=torch.float64).view(1, 401).requires_grad_()
    for delta in (0.05, 0.3, 2.0):
        (gradient,) = torch.autograd.grad(F.huber_loss(p, torch.zeros_like(p), reduction="sum", delta=delta), p)
        weight = p.detach().clone()
        decay_([weight], 0.01, delta)
        torch.testing.assert_close(weight, p.detach() - 0.01 * gradient)


def test_huber_threshold_follows_the_fan_in():
    """c = 3: .1326 for 512 inputs and .0663 for 2048 (PR 1807); zero gradients leave only the decay."""
    for inputs, delta in ((512, 0.1326), (2048, 0.0663)):
        parameter = nn.Parameter(torch.tensor([[0.5, -0.5, 0.01] + [0.0] * (inputs - 3)]))
        parameter.grad = torch.zeros_like(parameter)
        Muon({"w": parameter}, MuonConfig(huber=3.0, weight_decay=0.5), torch.float32).step(0.1, 0.9, 0.8)
        pulled = (torch.tensor([0.5, -0.5, 0.01]) - parameter.data[0, :3]) / (0.1 * 0.5 * 0.8)
        torch.testing.assert_close(pulled, torch.tensor([delta, -delta, 0.01]), rtol=1e-3, atol=1e-5)


def test_the_taper_scales_the_decay_alone():
    grad, results = torch.eye(4, 6), []
    for decay in (1.0, 0.5):
        parameter = nn.Parameter(torch.full((4, 6), 2.0))
        parameter.grad = grad.clone()
        Muon({"w": parameter}, MuonConfig(weight_decay=0.4), torch.float32).step(0.1, 0.9, decay)
        results.append(parameter.data)
    torch.testing.assert_close(results[1] - results[0], torch.full((4, 6), 2.0 * 0.1 * 0.4 * 0.5))


def test_late_layers_learn_and_decay_at_their_rate():
    torch.manual_seed(3)
    grad = torch.randn(6, 6)
    config, late = MuonConfig(), LateConfig(layer=5, muon=1.2)
    plain = update_of(config, grad, "blocks.5.attn.c_q.weight")
    torch.testing.assert_close(update_of(config, grad, "blocks.4.attn.c_q.weight", late), plain)
    torch.testing.assert_close(update_of(config, grad, "blocks.5.attn.c_q.weight", late), 1.2 * plain)
    torch.testing.assert_close(update_of(config, grad, "blocks.10.attn.c_q.weight", late), 1.2 * plain)
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2)
    Muon({"blocks.7.mlp.fc.weight": weight}, MuonConfig(weight_decay=0.5), torch.float32, late).step(0.1, 0.9)
    torch.testing.assert_close(weight.data, torch.full((2, 2), 1 - 0.1 * 1.2 * 0.5))


def test_low_precision_momentum_keeps_the_weights_in_float32():
    torch.manual_seed(4)
    parameters = [nn.Parameter(torch.zeros(16, 24)) for _ in range(2)]
    low = Muon({"w": parameters[0]}, MuonConfig(momentum_dtype="bfloat16"), torch.float32)
    high = Muon({"w": parameters[1]}, MuonConfig(), torch.float32)
    for _ in range(5):
        grad = torch.randn(16, 24)
        for parameter, muon in zip(parameters, (low, high), strict=True):
            parameter.grad = grad.clone()
            muon.step(0.1, 0.9)
    (buffer,) = low.gathered().values()
    assert buffer.dtype == torch.bfloat16
    assert parameters[0].dtype == torch.float32
    torch.testing.assert_close(buffer.float(), *high.gathered().values(), rtol=0.02, atol=0.05)
    difference = (parameters[0] - parameters[1]).norm() / parameters[1].norm()
    assert 0 < difference < 0.02
