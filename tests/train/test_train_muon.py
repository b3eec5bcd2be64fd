import math

import numpy as np
import pytest
import torch
from torch import nn

from pgolf.train.config import MuonConfig
from pgolf.train.muon import POLAR_EXPRESS, STANDARD, Muon, newton_schulz

# the published coefficients, typed again
TUPLES = {
    "standard": [(3.4445, -4.7750, 2.0315)] * 5,
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}


def singular_values(x):
    gram = (x @ x.mT if x.size(-2) < x.size(-1) else x.mT @ x).double()
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()


@pytest.mark.parametrize(
    ("coefficients", "low", "high", "median"),
    [(STANDARD, 0.735, 1.134, 0.948), (POLAR_EXPRESS, 0.859, 1.141, 1.007)],
    ids=["standard", "polar express"],
)
def test_singular_values_land_in_the_bands_of_the_specification(coefficients, low, high, median):
    torch.manual_seed(0)
    values = singular_values(newton_schulz(torch.randn(1, 512, 2048), 5, coefficients)[0])
    assert values.min() > low - 0.055  # [.68 ...] over many draws for the standard coefficients
    assert values.min() < low + 0.05
    assert high - 0.02 < values.max() < high + 0.002
    assert values.median().item() == pytest.approx(median, abs=0.01)


@pytest.mark.parametrize("kind", ["standard", "polar_express"])
def test_keeps_the_singular_vectors(kind):
    """An odd polynomial in X: U and V stay, so U' X V is diagonal."""
    torch.manual_seed(1)
    x = torch.randn(1, 12, 20, dtype=torch.float64)
    u, s, v = torch.linalg.svd(x[0], full_matrices=False)
    y = newton_schulz(x, 5, {"standard": STANDARD, "polar_express": POLAR_EXPRESS}[kind])[0]
    inner = u.mT @ y @ v.mT
    expected = s / x.norm()
    for a, b, c in TUPLES[kind]:
        expected = a * expected + b * expected**3 + c * expected**5
    torch.testing.assert_close(inner, torch.diag(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coefficients", [STANDARD, POLAR_EXPRESS], ids=["standard", "polar express"])
def test_transposing_commutes(coefficients):
    torch.manual_seed(2)
    for shape in ((3, 8, 24), (2, 10, 10)):
        x = torch.randn(shape, dtype=torch.float64)
        wide, tall = newton_schulz(x, 5, coefficients), newton_schulz(x.mT, 5, coefficients)
        assert tall.shape == x.mT.shape
        torch.testing.assert_close(tall.mT, wide, rtol=1e-9, atol=1e-9)


def test_each_matrix_is_scaled_by_its_own_norm_and_zero_stays_zero():
    torch.manual_seed(3)
    x = torch.randn(3, 6, 9)
    x[1] = 0
    together = newton_schulz(x * torch.tensor([1.0, 1.0, 1e4])[:, None, None], 5)
    assert not together[1].any()
    for index in (0, 2):
        torch.testing.assert_close(together[index], newton_schulz(x[index : index + 1], 5)[0], rtol=1e-3, atol=1e-4)


def test_fewer_steps_use_the_first_tuples():
    torch.manual_seed(4)
    x = torch.randn(1, 5, 7, dtype=torch.float64)
    short = newton_schulz(x, 2, POLAR_EXPRESS)
    torch.testing.assert_close(short, newton_schulz(x, 2, POLAR_EXPRESS[:2]))
    assert not torch.allclose(short, newton_schulz(x, 5, POLAR_EXPRESS))


class SlowMuon:
    """One matrix at a time, in the published order."""

    def __init__(self, weights, config):
        self.weights = {name: weight.copy() for name, weight in weights.items()}
        self.buffers = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.config = config

    def step(self, grads, lr, mu):
        for name, g in grads.items():
            self.buffers[name] = mu * self.buffers[name] + g
            u = g + mu * self.buffers[name]
            if self.config.row_norm:
                for row in range(len(u)):
                    u[row] = u[row] / max(math.sqrt((u[row] ** 2).sum()), 1e-7)
            rows, cols = u.shape
            x = u.T if rows > cols else u
            x = x / (math.sqrt((x**2).sum()) + 1e-7)
            for a, b, c in TUPLES[self.config.newton_schulz][: self.config.ns_steps]:
                gram = x @ x.T
                x = a * x + (b * gram + c * gram @ gram) @ x
            x = x.T if rows > cols else x
            p = self.weights[name]
            p = p * (1 - lr * self.config.weight_decay)
            self.weights[name] = p - lr * math.sqrt(max(1, rows / cols)) * x


SHAPES = {"a": (4, 6), "b": (12, 3), "c": (4, 6), "d": (5, 5), "e": (12, 3), "f": (6, 4)}


@pytest.mark.parametrize(
    "config",
    [
        MuonConfig(),
        MuonConfig(row_norm=False, weight_decay=0.3),
        MuonConfig(newton_schulz="polar_express", weight_decay=0.0),
        MuonConfig(newton_schulz="polar_express", ns_steps=3),
    ],
    ids=["record", "no row norm", "polar express", "three steps"],
)
def test_steps_equal_the_matrix_by_matrix_twin(config):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    parameters = {name: nn.Parameter(torch.from_numpy(weight.copy())) for name, weight in weights.items()}
    fast, slow = Muon(parameters, config, torch.float64), SlowMuon(weights, config)
    for lr, momentum in ((0.1, 0.5), (0.05, 0.9), (0.2, 0.95), (0.0, 0.9), (0.1, 0.99)):
        grads = {name: rng.normal(size=shape) * 10 ** rng.uniform(-3, 1) for name, shape in SHAPES.items()}
        grads["d"][2] = 0  # a row without gradient
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        fast.step(lr, momentum)
        slow.step(grads, lr, momentum)
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.detach().numpy(), slow.weights[name], rtol=1e-8, atol=1e-10)


def test_zero_gradients_only_decay():
    parameter = nn.Parameter(torch.full((4, 3), 2.0))
    parameter.grad = torch.zeros(4, 3)
    Muon({"w": parameter}, MuonConfig(weight_decay=0.5), torch.float32).step(0.1, 0.9)
    torch.testing.assert_close(parameter.data, torch.full((4, 3), 1.9))


def test_the_first_update_ignores_the_scale_of_the_gradient():
    torch.manual_seed(5)
    grad, results = torch.randn(6, 8), []
    for scale in (1e-3, 1e3):
        parameter = nn.Parameter(torch.zeros(6, 8))
        parameter.grad = grad * scale
        Muon({"w": parameter}, MuonConfig(), torch.float32).step(1.0, 0.9)
        results.append(parameter.data)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


def test_up_projections_move_twice_as_far():
    """sqrt(rows / cols) = 2 for 4 d x d; 1 for wide matrices: singular values of the update tell."""
    torch.manual_seed(6)
    for shape, factor in (((128, 32), 2.0), ((32, 128), 1.0)):
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape)
        Muon({"w": parameter}, MuonConfig(), torch.float32).step(1.0, 0.9)
        values = singular_values(parameter.data) / factor
        assert values.min() > 0.68
        assert values.max() < 1.135


def test_state_holds_every_momentum():
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    muon = Muon(parameters, MuonConfig(), torch.float32)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    muon.step(0.1, 0.9)
    state = muon.gathered()
    assert sum(tensor.numel() for tensor in state.values()) == sum(map(math.prod, SHAPES.values()))
    assert all((tensor == 1).all() for tensor in state.values())
