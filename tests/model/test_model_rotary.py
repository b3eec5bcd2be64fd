import math

import pytest
import torch

from pgolf.model.config import ModelConfig
from pgolf.model.rotary import inverse_frequencies, rotary_tables, rotate

CPU = torch.device("cpu")


def tables(length, dims, base=10000.0):
    return rotary_tables(length, inverse_frequencies(ModelConfig(rope_dims=dims, rope_base=base), CPU))


def rotated(x, positions, dims, base=10000.0):
    """x [D] placed at each of the positions: [len(positions), D]."""
    cos, sin = (table[positions] for table in tables(max(positions) + 1, dims, base))
    return rotate(x.expand(1, len(positions), 1, -1), cos, sin)[0, :, 0]


def test_tables_hold_the_frequencies_of_the_specification():
    """base^(-2k/16): the denominator is the number of rotating dimensions, not the 64 of the head."""
    cos, sin = tables(3000, 16)
    assert cos.shape == sin.shape == (3000, 8)
    assert cos.dtype == sin.dtype == torch.float32
    listed = [1, 0.316227766, 0.1, 0.0316227766, 0.01, 0.00316227766, 0.001, 0.000316227766]
    for k, frequency in enumerate(listed):
        for position in (0, 1, 257, 2047, 2999):
            assert cos[position, k].item() == pytest.approx(math.cos(position * frequency), abs=5e-4)
            assert sin[position, k].item() == pytest.approx(math.sin(position * frequency), abs=5e-4)


def test_pairs_k_with_k_plus_half_and_turns_clockwise():
    x = torch.arange(1.0, 11.0)
    angle = 3.0 * 100.0 ** (-2 / 6)
    got = rotated(x, [3], dims=6, base=100.0)[0]
    a, b = x[1], x[4]  # k = 1, half = 3
    assert got[1].item() == pytest.approx(float(a * math.cos(angle) + b * math.sin(angle)), rel=1e-5)
    assert got[4].item() == pytest.approx(float(-a * math.sin(angle) + b * math.cos(angle)), rel=1e-5)
    assert torch.equal(got[6:], x[6:])


def test_scores_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 24)
    positions = [0, 1, 2, 3, 500, 501, 502, 503]
    scores = rotated(q, positions, 16) @ rotated(k, positions, 16).T
    torch.testing.assert_close(scores[:4, :4], scores[4:, 4:], rtol=1e-4, atol=1e-3)
    assert (scores[0, 0] - scores[3, 0]).abs() > 0.01  # and they do depend on it


def test_keeps_lengths_and_position_zero():
    torch.manual_seed(1)
    x = torch.randn(20)
    got = rotated(x, [0, 7, 90], 8)
    assert torch.equal(got[0], x)
    torch.testing.assert_close(got.norm(dim=-1), x.norm().expand(3))


def test_no_rotating_dimension_is_the_identity():
    x = torch.randn(1, 5, 2, 8)
    assert torch.equal(rotate(x, *tables(5, 0)), x)


def test_each_row_and_head_turns_alike():
    torch.manual_seed(2)
    x = torch.randn(3, 5, 4, 8)
    both = tables(5, 4)
    whole = rotate(x, *both)
    for row in range(3):
        for head in range(4):
            alone = rotate(x[row : row + 1, :, head : head + 1], *both)
            assert torch.equal(whole[row, :, head], alone[0, :, 0])
