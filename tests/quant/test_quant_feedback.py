"""Error feedback to other rows and the price on bits, against float64 loops and exhaustive choices."""

import math

import pytest
import torch

from pgolf.quant.gptq import feed_back, gptq_quantize, inverse_factor, weighted_error
from pgolf.quant.grid import dequantize, sdclip_scale
from pgolf.quant.quantize import entropy
from pgolf.quant.solve import GAUSSIAN, _rounding
from pgolf.quant.two_sided import feed_back_both


def problem(seed, rows=12, columns=16, mixing=0.4, spread=0.5):
    generator = torch.Generator().manual_seed(seed)

    def covariance(n):
        mix = torch.eye(n) + mixing * torch.randn(n, n, generator=generator)
        X = torch.randn(6 * n, n, generator=generator) @ mix * torch.exp(spread * torch.randn(n, generator=generator))
        return X.mT @ X

    return torch.randn(rows, columns, generator=generator), covariance(columns), covariance(rows)


def nearest(clip):
    return lambda steps, _: steps.round().clamp(-clip, clip)


def both(W, H, G, scale, clip, row_block, damp=0.01):
    inputs, outputs = inverse_factor(H[None], damp), inverse_factor(G[None], damp)
    return feed_back_both(W[None], inputs, outputs, scale[None], nearest(clip), 128, row_block)[0]


def loss(W, codes, scale, H, G):
    E = (W - dequantize(codes, scale)).double()
    return torch.einsum("ij,ik,kl,jl->", G.double(), E, H.double(), E).item()


def damped(M):
    return M.double() + 0.01 * M.diagonal().double().mean() * torch.eye(len(M), dtype=torch.float64)


def slow_both(W, H, G, scale, clip):
    """One code at a time; after each, the best values of all open weights given all closed ones, by normal equations
    on the whole matrix. Codes, and the distance of the closest decision from a tie."""
    H, G = damped(H), damped(G)
    columns, rows = (torch.argsort(M.diagonal(), descending=True, stable=True).tolist() for M in (H, G))
    m, n = W.shape
    full = torch.kron(G, H)  # of the row-major errors
    target = W.double().flatten()
    codes, error = torch.zeros(m, n, dtype=torch.int8), torch.zeros(m * n, dtype=torch.float64)
    closed, margin = [], 0.5
    for i in rows:
        for j in columns:
            place = i * n + j
            open_ = [k for k in range(m * n) if k not in closed]
            if closed:
                best = -torch.linalg.solve(full[open_][:, open_], full[open_][:, closed] @ error[closed])
                value = target[place] - best[open_.index(place)]
            else:
                value = target[place]
            steps = value.item() / scale[i].item()
            codes[i, j] = q = max(-clip, min(clip, round(steps)))
            margin = min(margin, abs(abs(steps - round(steps)) - 0.5))
            error[place] = target[place] - q * scale[i].item()
            closed.append(place)
    return codes, margin


def test_row_blocks_of_one_equal_the_slow_twin():
    compared = 0
    for seed in range(6):
        W, H, G = problem(seed, rows=5, columns=6)
        scale = sdclip_scale(W, 12.85, 31)
        expected, margin = slow_both(W, H, G, scale, 31)
        if margin > 1e-3:
            compared += 1
            assert torch.equal(both(W, H, G, scale, 31, row_block=1), expected), seed
    assert compared >= 3


@pytest.mark.parametrize("row_block", [1, 5, 12, 64])
def test_rows_without_correlation_are_rounded_as_ever(row_block):
    W, H, _ = problem(1)
    scale = sdclip_scale(W, 12.85, 31)
    G = torch.diag(torch.rand(12, generator=torch.Generator().manual_seed(2)) + 0.1)
    assert torch.equal(both(W, H, G, scale, 31, row_block), gptq_quantize(W, H, scale, 31))


def test_feedback_to_rows_lowers_the_loss_the_more_the_smaller_the_blocks():
    totals = {}
    for seed in range(5):
        W, H, G = problem(seed, rows=32, columns=24)
        scale = sdclip_scale(W, 12.85, 31)
        for row_block in (1, 8, 32):
            totals[row_block] = totals.get(row_block, 0) + loss(W, both(W, H, G, scale, 31, row_block), scale, H, G)
    assert totals[1] < totals[8] < totals[32]
    assert totals[8] < 0.9 * totals[32]


def test_matrices_are_solved_together_as_they_are_alone():
    problems = [problem(seed) for seed in (3, 4)]
    W, H, G = (torch.stack(parts) for parts in zip(*problems, strict=True))
    scale = torch.stack([sdclip_scale(w, 12.85, 31) for w in W])
    together = feed_back(W, inverse_factor(H, 0.01), scale, nearest(31), 5)
    twice = feed_back_both(W, inverse_factor(H, 0.01), inverse_factor(G, 0.01), scale, nearest(31), 5, 4)
    for i, (w, h, g) in enumerate(problems):
        assert torch.equal(together[i], gptq_quantize(w, h, scale[i], 31, blocksize=5))
        assert torch.equal(twice[i], both(w, h, g, scale[i], 31, 4))


def test_columns_as_they_come():
    W, H, _ = problem(5)
    order = torch.argsort(H.diagonal(), descending=True)
    scale = sdclip_scale(W, 12.85, 31)
    plain = gptq_quantize(W[:, order], H[order][:, order], scale, 31, act_order=False)
    assert torch.equal(plain, gptq_quantize(W, H, scale, 31)[:, order])
    assert not torch.equal(gptq_quantize(W, H, scale, 31, act_order=False), gptq_quantize(W, H, scale, 31))


def test_a_priced_code_is_the_cheapest_of_all():
    W, H, _ = problem(6)
    scale, upper = sdclip_scale(W, 12.85, 7), inverse_factor(H, 0.01).upper
    rounding = _rounding(W[None], scale[None], torch.tensor([[7.0]]), upper[None], 0.5)
    u = upper.diagonal().square()
    u = u / math.exp(u.log().mean().item())
    variance = float((W / scale.float()[:, None]).square().mean()) + 1 / 12
    x = 5 * torch.randn(1, 12, generator=torch.Generator().manual_seed(7))
    for j in (0, 7, 15):
        for value, found in zip(x[0].tolist(), rounding(x, j)[0].tolist(), strict=True):
            price = {q: (value - q) ** 2 + 0.5 * u[j].item() * GAUSSIAN * q * q / variance for q in range(-7, 8)}
            assert found == min(price, key=price.get)


def test_a_price_on_bits_pays_at_low_rates():
    """At the same entropy (by finer steps) the weighted error falls."""
    errors = {0.0: 0.0, 0.12: 0.0}
    for seed in range(3):
        W, H, _ = problem(seed, rows=64, columns=48, spread=1.0)
        bits = None
        for rate in errors:
            low, high = 0.5, 8.0
            for _ in range(12):
                k = math.sqrt(low * high)
                scale = sdclip_scale(W, k * 127, 127)
                factor = inverse_factor(H[None], 0.01)
                rounding = _rounding(W[None], scale[None], torch.tensor([[127.0]]), factor.upper, rate)
                codes = feed_back(W[None], factor, scale[None], rounding)[0]
                if bits is None:
                    low = high = 2.0
                elif entropy(codes) > bits:
                    low = k
                else:
                    high = k
            bits = bits or entropy(codes)
            assert entropy(codes) == pytest.approx(bits, abs=0.02)
            errors[rate] += weighted_error(W - dequantize(codes, scale), H)
    assert errors[0.12] < errors[0.0]
