"""Row scales by other rules than the deviation, each against its formula written out row by row."""

import math

import pytest
import torch

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.gptq import inverse_factor, weighted_error
from pgolf.quant.grid import dequantize, round_to_nearest, sdclip_scale
from pgolf.quant.quantize import quantize_model
from pgolf.quant.steps import (
    PERCENTILES,
    Weighed,
    extreme_scale,
    hessian_aware,
    importance,
    loss_scales,
    percentile_scale,
)
from pgolf.train.config import QatConfig
from pgolf.train.qat import fake_quantize


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def covariance(n, seed):
    X = random(4 * n, n, seed=seed) * torch.exp(0.5 * random(n, seed=seed + 1))
    return X.mT @ X


def error_of(W, scale, clip):
    q = torch.clamp(torch.round(W / scale[:, None]), -clip, clip)
    return (W - q * scale[:, None]).square().mean(dim=1)


@pytest.mark.parametrize("per_row", [False, True])
def test_the_percentile_of_least_error_is_taken(per_row):
    W = random(12, 3000, seed=3) ** 3  # heavy tails: clipping pays
    tried = []
    for p in PERCENTILES:
        scale = torch.stack([torch.quantile(row.abs(), p) for row in W]) / 31
        tried.append((error_of(W, scale if per_row else scale.half().float(), 31), scale.half()))
    found = percentile_scale(W, 31, 0.0, per_row)
    chosen = set()
    for i in range(12):
        error = [float(e[i]) if per_row else float(e.mean()) for e, _ in tried]
        best = error.index(min(error))
        chosen.add(best)
        assert found[i] == tried[best][1][i]
    assert chosen != {len(PERCENTILES) - 1}
    assert (len(chosen) == 1) or per_row


def test_percentiles_of_every_row_are_never_worse_than_one_for_all():
    W = random(8, 2000, seed=5) ** 3
    one, each = (error_of(W, percentile_scale(W, 31, 0.0, per_row).float(), 31).sum() for per_row in (False, True))
    assert each <= one * 1.001  # but for the rounding of the scales to float16


def test_the_published_floor_of_the_clip():
    W = 0.01 * random(4, 100)
    for scale in (extreme_scale(W, 31, 1.0), *(percentile_scale(W, 31, 1.0, per_row) for per_row in (False, True))):
        assert torch.equal(scale, torch.full((4,), 1 / 31).half())


@pytest.mark.parametrize(("bits", "least_max"), [(6, 1.0), (6, 0.0), (4, 0.1)])
def test_extreme_steps_are_the_grid_of_late_qat(bits, least_max):
    """Weights on QAT's grid are restored as they are, but for the scale's rounding to float16."""
    grid = GridConfig(bits=bits)
    W = fake_quantize(0.3 * random(16, 40), QatConfig(bits=bits, least_max=least_max, symmetric=True))
    scale = extreme_scale(W, grid.clip, least_max)
    codes = round_to_nearest(W, scale, grid.clip)
    step = W.abs().amax(1).clamp_min(max(least_max, 1e-12)) / grid.clip
    assert torch.equal(codes.float(), (W / step[:, None]).round())
    assert torch.allclose(dequantize(codes, scale), W, rtol=2**-11, atol=0)


def test_hessian_aware_scales_follow_the_formula():
    W, d = random(6, 10), torch.rand(10, generator=torch.Generator().manual_seed(1))
    plain = sdclip_scale(W, 12.85, 31)
    found = hessian_aware(plain, W, d, 0.175)
    rows = [sum(abs(W[i, j].item()) * d[j].item() / d.mean().item() for j in range(10)) / 10 for i in range(6)]
    mean = sum(rows) / 6
    expected = [plain[i].item() * (1 + 0.175 * (rows[i] / mean - 1)) for i in range(6)]
    assert found.tolist() == pytest.approx(expected, rel=1e-3)
    assert torch.equal(hessian_aware(plain, W, d, 0.0), plain)


def test_importance_is_what_an_error_of_a_row_costs():
    """With error feedback, noise in row i costs its variance times G_ii sum_j 1 / U_jj^2, plus what the lookup adds."""
    H, G = covariance(12, 2).double(), covariance(5, 4).double()
    upper = inverse_factor(H.float(), 0.01).upper
    h = math.exp(sum(-2 * math.log(upper[j, j].item()) for j in range(12)) / 12)
    assert importance(G, upper).tolist() == pytest.approx([G[i, i].item() * h for i in range(5)])
    lookup = torch.arange(5.0)
    both = importance(G.diagonal(), upper, lookup)
    assert (both - importance(G, upper)).tolist() == pytest.approx(lookup.tolist())
    logdet = torch.linalg.slogdet(H + 0.01 * H.diagonal().mean() * torch.eye(12))[1].item()
    assert h == pytest.approx(math.exp(logdet / 12), rel=1e-4)  # the order of the columns does not matter


def test_steps_by_loss_cost_the_same_everywhere_at_the_rate_of_sdclip():
    matrices = {
        "a": Weighed(random(40, 64), torch.exp(2 * random(40, seed=1)).double(), 0.4),
        "b": Weighed(0.1 * random(8, 16, seed=2), torch.exp(random(8, seed=3)).double(), 0.4),
    }
    scales = loss_scales(matrices)
    costs = torch.cat([A.sqrt() * scales[name].double() for name, (_, A, _) in matrices.items()])
    assert costs.max() / costs.min() < 1.01
    rate = sum(
        W.size(1) * (scales[name].double() / W.double().std(1)).log().sum() for name, (W, _, _) in matrices.items()
    )
    assert float(rate) / sum(W.numel() for W, _, _ in matrices.values()) == pytest.approx(math.log(0.4), abs=1e-3)


def test_steps_by_loss_never_clip():
    A = torch.ones(4).double()
    A[0] = 1e9
    W = random(4, 200)
    scale = loss_scales({"w": Weighed(W, A, 0.4)})["w"]
    assert (W.abs().amax(1) / scale.float()).max() < 127.5
    assert not scale[0] < W[0].abs().max() / 127 * 0.999


def test_steps_by_loss_lower_the_predicted_loss_of_a_model_at_the_same_rate():
    state = {f"blocks.{i}.mlp.fc.weight": random(64, 48, seed=i) * (1 + i) for i in range(3)}
    hessians = {"x": covariance(48, 9)}
    for i, name in enumerate(state):
        rows = torch.exp(random(64, seed=i + 20))
        hessians[f"{name}.G"] = covariance(64, i + 30) * rows[:, None] * rows * 4.0**i
    kinds = {}
    for steps in ("deviation", "loss"):
        config = QuantizeConfig(small_numel=0, steps=steps, mlp=GridConfig(bits=8, k_sigma=50.0))
        kinds[steps] = quantize_model(state, hessians, dict.fromkeys(state, "x"), config)
    rate = {}
    for steps, done in kinds.items():
        scale = [done.tensors[f"{name}.scale"].double() / W.double().std(1) for name, W in state.items()]
        rate[steps] = torch.cat(scale).log2().mean().item()
        for report in done.reports:
            E = state[report.name] - dequantize(done.tensors[f"{report.name}.q"], done.tensors[f"{report.name}.scale"])
            G = hessians[f"{report.name}.G"].double()
            direct = 0.5 * torch.einsum("ij,ik,kl,jl->", G, E.double(), hessians["x"].double(), E.double())
            assert report.nats == pytest.approx(direct.item(), rel=1e-9)
    assert rate["loss"] == pytest.approx(rate["deviation"], abs=0.02)  # some rows reach the end of int8
    nats = {steps: sum(report.nats for report in done.reports) for steps, done in kinds.items()}
    assert nats["loss"] < 0.7 * nats["deviation"]


@pytest.mark.parametrize("change", [{"steps": "loss"}, {"row_block": 4}])
def test_a_scheme_that_needs_the_sensitivity_says_how_to_get_it(change):
    state = {"blocks.0.mlp.fc.weight": random(8, 8)}
    config = QuantizeConfig(small_numel=0, **change)
    with pytest.raises(InputError, match=r"blocks.0.mlp.fc.weight: .*set `calibrate.sensitivity` and calibrate again"):
        quantize_model(state, {"x": torch.eye(8)}, dict.fromkeys(state, "x"), config)


def test_rounding_to_nearest_ignores_the_hessian():
    state, H = {"blocks.0.mlp.fc.weight": random(8, 24)}, covariance(24, 1)
    done = quantize_model(state, {"x": H}, dict.fromkeys(state, "x"), QuantizeConfig(small_numel=0, method="rtn"))
    (W,), (name,) = state.values(), state
    expected = round_to_nearest(W, sdclip_scale(W, 12.85, 31), 31)
    assert torch.equal(done.tensors[f"{name}.q"], expected)
    gptq = quantize_model(state, {"x": H}, dict.fromkeys(state, "x"), QuantizeConfig(small_numel=0))
    error = [
        weighted_error(W - dequantize(d.tensors[f"{name}.q"], d.tensors[f"{name}.scale"]), H) for d in (done, gptq)
    ]
    assert error[1] < error[0]
