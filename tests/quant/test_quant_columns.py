"""Column scales: what they are, that they come back, and that they pay where theory says."""

import math

import pytest
import torch

from pgolf.codec.canonical import canonical_order
from pgolf.quant.artifact import layout_of
from pgolf.quant.columns import REACH, column_scales, rescaled
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.gptq import feed_back, inverse_factor, weighted_error
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore

NAME = "blocks.0.mlp.fc.weight"


def problem(seed=0, rows=64, columns=48, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.1 * torch.randn(columns, columns, generator=generator)
    size = torch.exp(spread * torch.randn(columns, generator=generator))
    X = torch.randn(8 * columns, columns, generator=generator) @ mix * size
    return torch.randn(rows, columns, generator=generator), X.mT @ X


def quantized(W, H, **changes):
    config = QuantizeConfig(small_numel=0, **changes)
    return quantize_model({NAME: W}, {"x": H}, {NAME: "x"}, config)


def test_scales_follow_their_formulas():
    _, H = problem()
    damped = H.double() + 0.01 * H.diagonal().mean() * torch.eye(48)
    factor = inverse_factor(H, 0.01)
    order = torch.argsort(H.diagonal(), descending=True)
    U = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order])).mT.diagonal()
    for kind, expected in (
        ("loss", [U[order.tolist().index(j)].item() for j in range(48)]),
        ("activation", [damped[j, j].item() ** -0.25 for j in range(48)]),
    ):
        found = column_scales(H, factor, QuantizeConfig(columns=kind)).double()
        mean = math.exp(sum(map(math.log, expected)) / 48)
        for c, e in zip(found.tolist(), expected, strict=True):
            wanted = min(max(e / mean, 1 / REACH), REACH)
            assert abs(math.log2(c / wanted)) <= 1 / 8 + 1e-3
            assert math.log2(c) * 4 == pytest.approx(round(math.log2(c) * 4), abs=4e-3)


def test_the_rescaled_factor_is_that_of_the_rescaled_hessian():
    W, H = problem(1)
    H = H[order := torch.argsort(H.diagonal(), descending=True)][:, order]
    c = torch.exp(0.3 * torch.randn(48, generator=torch.Generator().manual_seed(2))).half()
    direct = inverse_factor(c.float()[:, None] * H * c.float(), 1e-9, act_order=False)
    changed = rescaled(inverse_factor(H, 1e-9, act_order=False), c)
    assert torch.allclose(direct.upper, changed.upper, rtol=1e-3, atol=1e-6)
    scale = torch.full((64,), 0.3).half()
    codes = [feed_back(W / c.float(), factor, scale, lambda x, _: x.round()) for factor in (direct, changed)]
    assert (codes[0] != codes[1]).double().mean() < 0.01


@pytest.mark.parametrize("columns", ["activation", "loss"])
def test_restored_weights_carry_the_column_scales(columns):
    W, H = problem(3)
    done = quantized(W, H, columns=columns, lqer=LqerConfig(top_k=1))
    stored = done.tensors
    E = W - restore(stored)[NAME]
    relative = weighted_error(E, H) / weighted_error(W, H)
    assert done.reports[0].relative_error == pytest.approx(relative, rel=1e-5)
    assert relative < 0.05
    plain = stored[f"{NAME}.q"].float() * stored[f"{NAME}.scale"].float()[:, None]
    without = {key: value for key, value in stored.items() if ".lq" not in key}
    assert torch.allclose(restore(without)[NAME], plain * stored[f"{NAME}.cols"].float())
    layout = layout_of(
        {NAME: (64, 48)}, QuantizeConfig(small_numel=0, columns=columns, lqer=LqerConfig(top_k=1)), {NAME}
    )
    assert {entry.key: entry.shape for entry in layout} == {key: tuple(t.shape) for key, t in stored.items()}


def test_columns_by_loss_pay_as_much_as_theory_says():
    """At fine steps the error at equal rate falls by the ratio of the geometric to the arithmetic mean of 1 / U^2."""
    found, expected = 0.0, 0.0
    for seed in range(4):
        W, H = problem(seed, rows=128)
        errors = {}
        for columns in ("none", "loss"):
            done = quantized(W, H, columns=columns, damp=1e-6, mlp=GridConfig(bits=8, k_sigma=18.0))
            stored = done.tensors
            c = stored[f"{NAME}.cols"].double() if columns == "loss" else torch.ones(48)
            rate = -(stored[f"{NAME}.scale"].double()[:, None] * c).log2().mean()
            errors[columns] = math.log2(weighted_error(W - restore(stored)[NAME], H)) + 2 * rate.item()
        u = inverse_factor(H, 1e-6).upper.diagonal().double().pow(-2)
        found += errors["none"] - errors["loss"]
        expected += math.log2(u.mean().item()) - u.log2().mean().item()
    assert expected > 1.0
    assert found == pytest.approx(expected, rel=0.2)


def test_canonical_order_moves_column_scales_with_their_columns():
    generator = torch.Generator().manual_seed(0)
    stored = {}
    for name, shape in ((NAME, (8, 4)), ("blocks.0.mlp.proj.weight", (4, 8))):
        stored[f"{name}.q"] = torch.randint(-9, 9, shape, generator=generator).to(torch.int8)
        stored[f"{name}.scale"] = torch.rand(shape[0], generator=generator).half()
        stored[f"{name}.cols"] = torch.rand(shape[1], generator=generator).half()
    ordered = canonical_order({key: value.numpy() for key, value in stored.items()}, 2, 1, 2)
    before, after = restore(stored), restore({key: torch.from_numpy(value) for key, value in ordered.items()})
    assert not torch.equal(before[NAME], after[NAME])
    product = [state["blocks.0.mlp.proj.weight"] @ state[NAME] for state in (before, after)]
    assert torch.allclose(product[0], product[1], atol=1e-5)
