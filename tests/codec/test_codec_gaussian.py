"""The distribution function against `math.erfc`, and intervals as a proper code."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec.gaussian import FINE, HALF, TOTAL, UNIT, cells, integers, normal_cells, scale_of


def test_the_table_is_the_normal_distribution():
    z = (np.arange(2 * HALF) - HALF + 0.5) / FINE
    exact = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z]) * TOTAL
    assert np.abs(normal_cells() - exact).max() <= 1
    assert (np.diff(normal_cells()) >= 0).all()
    assert (normal_cells() + normal_cells()[::-1] == TOTAL).all()


alphabets = st.one_of(
    st.tuples(st.integers(-128, 0), st.integers(0, 127)).map(lambda ends: integers(*ends)),
    st.lists(st.integers(-(2**20), 2**20), max_size=40).map(lambda edges: cells(np.sort(np.array(edges, np.float64)))),
)


@settings(max_examples=150, deadline=None)
@given(alphabets, st.floats(-(2.0**26), 2.0**26), st.floats(0, 2.0**40), st.integers(0, TOTAL - 1))
def test_intervals_tile_and_find_inverts(alphabet, mean, variance, point):
    symbols = np.arange(alphabet.count)
    means, inverse = np.full(len(symbols), np.rint(mean)), scale_of(np.full(len(symbols), variance))
    low, width = alphabet.interval(symbols, means, inverse)
    assert low[0] == 0
    assert (width >= 1).all()
    assert (low[1:] == (low + width)[:-1]).all()
    assert low[-1] + width[-1] == TOTAL
    points = np.array([point, 0, TOTAL - 1, *low[:5], *(low + width - 1)[-5:]])
    part = slice(0, len(points))
    found, offset, size = alphabet.finder(np.resize(means, len(points)), np.resize(inverse, len(points)))(part, points)
    assert (low[found] + offset == points).all()
    assert (size == width[found]).all()
    assert ((offset >= 0) & (offset < size)).all()


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.4, 40.0])
@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.45])
def test_widths_are_the_mass_of_the_cells(mean, deviation):
    symbols = np.arange(63)
    inverse = scale_of(np.full(63, deviation**2))
    _, width = integers(-31, 31).interval(symbols, np.full(63, np.rint(mean * UNIT)), inverse)
    phi = lambda x: 0.5 * math.erfc(-(x - np.rint(mean * UNIT) / UNIT) / deviation / math.sqrt(2))  # noqa: E731
    ends = [-math.inf, *(np.arange(-31, 31) + 0.5), math.inf]
    exact = np.array([phi(high) - phi(low) for low, high in pairwise(ends)])
    assert np.abs(width / TOTAL - exact).max() < 1.2 / FINE / math.sqrt(2 * math.pi)
    loss = (exact * np.log2(np.maximum(exact, 1e-300) / (width / TOTAL))).sum()  # Kullback-Leibler distance in bits
    assert 0 <= loss < (2e-5 if deviation < 3 else 5e-4)  # a cell of 1/40 of a deviation is 13 cells of the table
