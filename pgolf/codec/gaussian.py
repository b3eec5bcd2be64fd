"""Interval widths of a Gaussian in whole numbers: the same on every machine, because no float library has a say.

A symbol is a cell between two of the ordered `edges` of an alphabet; its probability is the Gaussian mass of the cell,
the outermost cells reaching to infinity, as codes do that were clamped. Probabilities are whole multiples of 2^-24 and
never 0. Positions, means and scales are whole numbers held in float64, whose products stay below 2^53: every operation
here is exact, so neither the order of operations nor the machine can matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

BITS = 24
"""Probabilities are multiples of 2^-BITS."""
TOTAL = 1 << BITS
UNIT = 256.0
"""Edges and means are in units of 1/256 of the symbols' own unit (one code step)."""
FINE = 512
"""Cells of the table per standard deviation."""
LIMIT = 8
"""The table ends at this many standard deviations; beyond it a symbol has the least probability, 2^-24."""
HALF = LIMIT * FINE
PRECISION = float(FINE << 16) / UNIT
"""`inverse` = PRECISION / standard deviation in code steps, rounded: 2^17 at a deviation of one step."""
LEAST, MOST = 2.0**-7, 2.0**14
"""Bounds of the standard deviation, in code steps."""
_FAR = 2.0**28
_COARSE = 8


@cache
def normal_cells() -> Array:
    """int64 [2 HALF]: the normal distribution function at the centres of the table's cells, 0 to 2^24.

    exp(-z^2/2) comes from p[k+1] = p[k] r[k], r[k+1] = r[k] q with q = exp(-1/FINE^2), all in integers of 128 bits
    after the point; the function is its running sum, scaled so that all of it is 2^24.
    """
    one = 1 << 128
    q = term = one
    for n in range(1, 12):  # exp(-1/FINE^2) by its series
        term = -term // (n * FINE * FINE)
        q += term
    root = _root(q * one)  # exp(-1/(2 FINE^2)): from z to z + 1/FINE the density falls by root * q^k
    density, ratio, tail = one, root, [0]
    for _ in range(HALF):
        density = density * ratio >> 128
        ratio = ratio * q >> 128
        tail.append(tail[-1] + density)
    # cell centre k + 1/2: the densities of the points 1..k lie below it, and half of point 0's
    whole = 2 * tail[-1] + one
    upper = [((2 * part + one) * TOTAL // whole + TOTAL) // 2 for part in tail[:-1]]
    return np.array([TOTAL - value for value in reversed(upper)] + upper, np.int64)


def _root(square: int) -> int:
    """Whole part of the square root, by Newton's method."""
    guess = 1 << (square.bit_length() + 1) // 2
    while (better := (guess + square // guess) // 2) < guess:
        guess = better
    return guess


@cache
def quantiles() -> Array:
    """float32 [2^16]: where in the table (cells from its centre) the probability k 2^-16 lies: a first guess only."""
    places = np.searchsorted(normal_cells(), (np.arange(TOTAL >> _COARSE) << _COARSE) + (1 << _COARSE - 1))
    return (places - HALF).astype(np.float32)


def scale_of(variance: Array) -> Array:
    """The `inverse` of a variance (code steps squared, at least 0): the only division and root, each correctly rounded.

    What is added keeps deviations between 2^-7 and 2^14 steps, without comparisons.
    """
    inverse: Array = np.rint(PRECISION / np.sqrt(variance + LEAST**2))
    inverse += PRECISION / MOST
    return inverse


@dataclass(frozen=True, slots=True, eq=False)
class Alphabet:
    """Ordered symbols 0..count-1 with their edges; see `integers` and `cells`."""

    edges: Array
    """float64 [count + 1], in units of 1/256; the outermost ones are far away."""
    table: Array
    """int64 [2 HALF]: the distribution function, scaled so that every symbol can be given 1 more."""
    uniform: bool
    """Whether inner edges are one step apart."""

    @property
    def count(self) -> int:
        """Number of symbols."""
        return len(self.edges) - 1

    def interval(self, symbols: Array, mean: Array, inverse: Array) -> tuple[Array, Array]:
        """First point and width of each symbol's interval in 0..2^24.

        `mean` in 1/256, at most 2^26 in size; `inverse` from `scale_of`.
        """
        scale = inverse * 2.0**-16
        return self._interval(symbols, scale, HALF - mean * scale)

    def _interval(self, symbols: Array, scale: Array, origin: Array) -> tuple[Array, Array]:
        ends = symbols + _LOW_HIGH
        place = self.edges.take(ends, mode="clip") * scale + origin  # truncated below 0, where it is clipped anyway
        low, high = self.table.take(place.astype(np.intp), mode="clip") + ends
        return low, high - low

    def finder(self, mean: Array, inverse: Array) -> Callable[[slice, Array], tuple[Array, Array, Array]]:
        """For points of some of the symbols: the symbols, the points' distance from their intervals' start, widths."""
        scale = inverse * 2.0**-16
        origin, unit = HALF - mean * scale, 1.0
        if self.uniform:  # guesses in symbols instead of 1/256
            unit = 1 / UNIT
            mean = mean * unit + (1.0 - float(self.edges[1]) * unit)
        spread = (65536.0 * unit) / inverse

        def find(part: slice, points: Array, /) -> tuple[Array, Array, Array]:
            guess = quantiles().take(points >> _COARSE, mode="clip") * spread[part] + mean[part]
            symbols: Array = guess.astype(np.intp) if self.uniform else np.searchsorted(self.edges[1:-1], guess)
            low, width = self._interval(symbols, scale[part], origin[part])
            offset = points - low
            if np.count_nonzero(wrong := offset.view(np.uint64) >= width.view(np.uint64)):
                self._correct(wrong.nonzero()[0], points, symbols, offset, width, scale[part], origin[part])
            return symbols, offset, width

        return find

    def _correct(
        self, wrong: Array, points: Array, symbols: Array, offset: Array, width: Array, scale: Array, origin: Array
    ) -> None:
        """Find the right symbols: the guess is off by one in most cases, by many in the far tails."""
        symbols[wrong] = np.minimum(np.maximum(symbols[wrong], 0), self.count - 1)
        for _ in range(2):
            low, width[wrong] = self._interval(symbols[wrong], scale[wrong], origin[wrong])
            offset[wrong] = points[wrong] - low
            step = np.where(offset[wrong] < 0, -1, np.where(offset[wrong] < width[wrong], 0, 1))
            symbols[wrong] += step
            if not (wrong := wrong[step != 0]).size:
                return
        least, most = np.zeros_like(wrong), np.full_like(wrong, self.count - 1)
        while (least < most).any():  # the intervals' starts rise with the symbol
            middle = (least + most + 1) >> 1
            below = self._interval(middle, scale[wrong], origin[wrong])[0] <= points[wrong]
            least, most = np.where(below, middle, least), np.where(below, most, middle - 1)
        low, width[wrong] = self._interval(least, scale[wrong], origin[wrong])
        symbols[wrong], offset[wrong] = least, points[wrong] - low


_LOW_HIGH = np.array([[0], [1]])


def _alphabet(inner: Array, uniform: bool) -> Alphabet:
    cells = normal_cells() * (TOTAL - len(inner) - 1) >> BITS
    cells[0], cells[-1] = 0, TOTAL - len(inner) - 1
    return Alphabet(np.concatenate([[-_FAR], inner, [_FAR]]), cells, uniform)


@cache
def integers(least: int, most: int) -> Alphabet:
    """The whole numbers least..most; symbol s stands for least + s, its cell is one wide and centred on it."""
    return _alphabet((np.arange(least, most) + 0.5) * UNIT, True)


def cells(inner: Array) -> Alphabet:
    """The cells between given edges (ascending, in 1/256, below 2^28 in size); one symbol more than edges."""
    return _alphabet(np.asarray(inner, np.float64), False)
