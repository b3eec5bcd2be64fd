"""Half-precision vectors (row scales, gains): what is smooth along a vector and similar between vectors.

A float16 v is coded as one of 65,536 cells between its neighbours, by a Gaussian over

    y = 2^12 u / (1 + c u^2)^(1/4),   u = (v - m) / s

m, s (about the vector's middle and deviation) and c (how heavy its tails are) are sent. Where the deviation spans many
float16 numbers, the lowest bits of their rank are sent apart, as they are. A vector is coded at every 2^k-th
place first, then halfway between, down to every place, so that both neighbours of a place are known; its prediction is
a ridge regression on their mean and on up to three vectors of the same length that came before: the last one of the
same kind (the same key but for its numbers) and the last two of any kind. Vectors that fall, or consist of equally long
runs that do, as canonical orders make them (`canonical`), are told by their ends and by bisection.
"""

import math
import re
from functools import cache
from typing import Any

import numpy as np

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.gaussian import cells, integers, scale_of
from pgolf.codec.rans import Coder, Uniform, flat

Array = np.ndarray[Any, np.dtype[Any]]

UNIT = 4096.0
"""One deviation of a vector in y; also in 1/256 of a symbol's step, as means are."""
TAILS = (0.0, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
FIRST = 16
"""Least places of the first pass."""
FINEST = 8
"""Steps of the rank per deviation that the Gaussian tells apart; the bits below are sent as they are."""
MOST_RUNS = 8
"""Choices for the number of falling runs: none, 1, 2, 4, ..., 64."""
GRIDS = (2, 4, 8, 16, 32, -8, -7, -6, -5, -4, -3, -2, 0)
"""Steps per octave of a geometric grid, coarsest first; -z: float16 numbers whose last z bits are 0; 0: any."""
REGRESSORS = 4
PRIOR_WEIGHT, NOISE_WEIGHT, FORGET = 24.0, 8.0, 0.5
_EDGE, _BOUND = 2.0**26, 2.0**17


def order_of(bits: Array) -> Array:
    """Rank 0..65535 of float16 bit patterns (uint16) by value: -NaN, -inf, ..., -0, 0, ..., inf, NaN."""
    return np.where(bits & 0x8000, 0xFFFF - bits, bits | 0x8000)


def bits_of(order: Array) -> Array:
    """The inverse of `order_of`."""
    return np.where(order & 0x8000, order & 0x7FFF, 0xFFFF - order)


@cache
def grid(steps: int) -> Array:
    """Bit patterns uint16 of a grid of `GRIDS`, in the order of their values."""
    if steps <= 0:
        patterns: Array = bits_of(np.arange(0x10000)).astype(np.uint16)
        kept: Array = patterns[patterns & (1 << -steps) - 1 == 0]
        return kept
    root, values = 2.0, [1.0]
    for _ in range(steps.bit_length() - 1):
        root = math.sqrt(root)
    for _ in range(steps - 1):
        values.append(values[-1] * root)
    powers = [math.ldexp(value, octave) for octave in range(-24, 15) for value in values]
    return np.unique(np.array(powers).astype(np.float16)).view(np.uint16)


@cache
def members(steps: int) -> Array:
    """bool [2^16]: which patterns are on a grid."""
    found: Array = np.isin(np.arange(0x10000), grid(steps))
    return found


@cache
def ranks_of(steps: int) -> Array:
    """Ranks of a grid's patterns."""
    return order_of(grid(steps))


@cache
def values_of(steps: int) -> Array:
    """float64 of a grid's patterns; infinities and NaNs are placed beyond the largest numbers."""
    values, rank = grid(steps).view(np.float16).astype(np.float64), ranks_of(steps)
    return np.where(np.isfinite(values), values, np.where(rank & 0x8000, 65536.0 + rank, rank - 131072.0))


def _warp(values: Array, middle: float, spread: float, tail: float) -> Array:
    u = (values - middle) / spread
    y = u / np.sqrt(np.sqrt(1.0 + tail * (u * u))) * UNIT
    return np.minimum(np.maximum(np.rint(y), -_EDGE), _EDGE)


def passes(length: int) -> list[tuple[Array, int]]:
    """Places of each pass and the distance of their neighbours (0 in the first one, which has none)."""
    stride = 1
    while length // (2 * stride) >= FIRST:
        stride *= 2
    steps = [(np.arange(0, length, stride), 0)]
    while stride > 1:
        stride //= 2
        steps.append((np.arange(stride, length, 2 * stride), stride))
    return [step for step in steps if len(step[0])]


class Series:
    """Codes vectors one after the other, learning from each."""

    def __init__(self, coder: Coder) -> None:
        self.coder = coder
        self.past: list[tuple[str, Array]] = []
        self.learned: dict[str, Array] = {}

    def code(self, key: str, bits: Array) -> None:
        """Code a vector of float16 bit patterns uint16 [n] in place; a decoder fills it."""
        steps = self._grid(bits)
        patterns, self.values, ranks = grid(steps), values_of(steps), ranks_of(steps)
        rank = np.minimum(np.searchsorted(ranks, order_of(bits)), len(ranks) - 1)
        if runs := self._runs(rank):
            for run in rank.reshape(runs, -1):
                self._falling(run)
            bits[:] = patterns[rank]
            return
        middle, spread, tail, low = self._shape(rank)
        first = self.values[:: 1 << low]
        alphabet = cells(_warp((first[1:] + self.values[(1 << low) - 1 : -1 : 1 << low]) * 0.5, middle, spread, tail))
        kind = re.sub(r"\d+", "", key)
        others = self._others(kind, len(bits))
        y = np.zeros(len(bits))
        weights = self.learned.get(kind, np.zeros(REGRESSORS))
        squares, cross = np.zeros((REGRESSORS, REGRESSORS)), np.zeros(REGRESSORS)
        noise, count = NOISE_WEIGHT * UNIT**2, NOISE_WEIGHT
        for places, distance in passes(len(bits)):
            regressors = np.stack([_neighbours(y, places, distance), *(other[places] for other in others)])
            factors = _solve(squares, cross, PRIOR_WEIGHT * UNIT**2, weights)
            mean = np.rint(sum(factors[i] * regressors[i] for i in range(REGRESSORS)))
            mean = np.minimum(np.maximum(mean, -_BOUND), _BOUND)
            inverse = scale_of(np.full(len(places), noise / (count * 65536.0)))
            high = self.coder.code(alphabet, rank[places] >> low, mean, inverse)
            rest = self.coder.code(Uniform(1 << low), rank[places] & (1 << low) - 1, *flat(len(places)))
            rank[places] = np.minimum(high << low | rest, len(self.values) - 1)
            point = _warp(self.values[rank[places]], middle, spread, tail)
            y[places] = np.minimum(np.maximum(point, -8 * UNIT), 8 * UNIT)
            error = y[places] - mean
            squares = squares * FORGET + regressors @ regressors.T
            cross = cross * FORGET + regressors @ y[places]
            noise = noise * FORGET + float(error @ error)
            count = count * FORGET + len(places)
        bits[:] = patterns[rank]
        self.learned[kind] = _solve(squares, cross, PRIOR_WEIGHT * UNIT**2, weights)
        self.past.append((kind, y))

    def _grid(self, bits: Array) -> int:
        """Send and return the coarsest grid that all numbers lie on, see `grid`."""
        fits = [index for index, steps in enumerate(GRIDS[:-1]) if members(steps)[bits].all()]
        sent = np.array([*fits, len(GRIDS) - 1][:1])
        return GRIDS[int(self.coder.code(Uniform(len(GRIDS)), sent, *flat(1))[0])]

    def _runs(self, rank: Array) -> int:
        """Send and return how many equally long falling runs the vector is made of; 0: it is not, or is too short."""
        if len(rank) < 2 * FIRST:
            return 0
        fits = [
            number
            for number in range(1, MOST_RUNS)
            if len(rank) % (1 << number - 1) == 0
            and len(rank) >> number - 1 >= FIRST
            and (np.diff(rank.reshape(1 << number - 1, -1), axis=1) <= 0).all()
        ]
        number = int(self.coder.code(Uniform(MOST_RUNS), np.array([*fits, 0][:1]), *flat(1))[0])
        if number and (len(rank) % (1 << number - 1) or len(rank) >> number - 1 < FIRST):
            raise CorruptStreamError("a vector cannot be cut into its runs")
        return 1 << number - 1 if number else 0

    def _falling(self, rank: Array) -> None:
        """Code ranks [n] that fall: both ends, then the middle between known ones, as order statistics lie there."""
        last, alphabet = len(rank) - 1, integers(0, len(self.values) - 1)
        ends = self.coder.code(Uniform(len(self.values)), rank[[0, last]], *flat(2))
        rank[0], rank[last] = ends
        distance = 1 << max(last - 1, 0).bit_length()
        while distance := distance >> 1:
            places = np.arange(distance, last, 2 * distance)
            after = np.minimum(places + distance, last)
            left, right = rank[places - distance].astype(np.float64), rank[after].astype(np.float64)
            between = after - places + distance  # one more than the places between
            mean = np.rint((left + (right - left) * (distance / between)) * 256.0)
            inverse = scale_of((left - right) ** 2 / (4.0 * (between + 1)) + 1 / 12)
            rank[places] = self.coder.code(alphabet, rank[places], mean, inverse)

    def _shape(self, rank: Array) -> tuple[float, float, float, int]:
        """Send and return middle, spread, tail and low bits; a decoder's `rank` does not matter."""
        values = self.values[rank]
        shift = 4 if len(self.values) == 0x10000 else 0
        half = 1 << shift >> 1
        middle = int(np.median(rank)) >> shift if len(rank) else 0
        centre = float(self.values[middle << shift | half])
        spread = float(np.sqrt(np.mean(np.square(np.clip(values - centre, -1e4, 1e4))))) if len(rank) else 1.0
        width = round(4 * np.log2(max(spread, 2.0**-24))) + 96  # 2^-24 .. 2^14 in quarters of an octave
        tail = min(range(len(TAILS)), key=lambda i: _cost(values, centre, _width(width), TAILS[i]))
        steps = float(np.subtract(*np.percentile(rank, [75, 25]))) / 1.35 if len(rank) else 0.0
        low = min(max(int(np.log2(max(steps, 1.0) / FINEST)), 0), 8)
        sent = np.array([middle, min(width, 159), tail, low], np.intp)
        got = [
            int(self.coder.code(Uniform(size), sent[i : i + 1], *flat(1))[0])
            for i, size in enumerate((len(self.values) >> shift, 160, len(TAILS), 9))
        ]
        return float(self.values[got[0] << shift | half]), _width(got[1]), TAILS[got[2]], got[3]

    def _others(self, kind: str, length: int) -> list[Array]:
        same = [y for past, y in self.past if past == kind and len(y) == length][-1:]
        recent = [y for past, y in self.past if past != kind and len(y) == length][-2:][::-1]
        blank = np.zeros(length)
        return [*(same or [blank]), *recent, *[blank] * (2 - len(recent))]


def _width(number: int) -> float:
    """2^(number/4 - 24) from whole octaves and three fixed factors."""
    return (1.0, 1.1875, 1.40625, 1.6875)[number % 4] * math.ldexp(1.0, number // 4 - 24)


def _cost(values: Array, middle: float, spread: float, tail: float) -> float:
    """Bits of a Gaussian in y, up to a constant; the encoder's choice only."""
    u = np.clip((values - middle) / spread, -1e6, 1e6)
    inner = 1 + tail * u * u
    slope = (1 + 0.5 * tail * u * u) / inner**1.25
    y = u / inner**0.25
    return float(len(u) * 0.5 * np.log2(np.mean(np.square(y)) + 1e-9) - np.log2(slope).sum()) if len(u) else 0.0


def _neighbours(y: Array, places: Array, distance: int) -> Array:
    """Mean of the two neighbours; at the end the left one alone."""
    if not distance:
        return np.zeros(len(places))
    left, right = y[places - distance], y[np.minimum(places + distance, len(y) - 1)]
    mean: Array = np.where(places + distance < len(y), np.rint((left + right) * 0.5), left)
    return mean


def _solve(squares: Array, cross: Array, weight: float, prior: Array) -> Array:
    """(S + w I)^-1 (c + w b0) by elimination in plain floats: positive definite, so no pivoting."""
    size = len(cross)
    a = [[float(squares[i, j]) + (weight if i == j else 0.0) for j in range(size)] for i in range(size)]
    b = [float(cross[i]) + weight * float(prior[i]) for i in range(size)]
    for k in range(size):
        for i in range(k + 1, size):
            factor = a[i][k] / a[k][k]
            a[i] = [x - factor * y for x, y in zip(a[i], a[k], strict=True)]
            b[i] -= factor * b[k]
    for k in reversed(range(size)):
        for i in range(k + 1, size):  # not sum(): how it rounds depends on the version of Python
            b[k] -= a[k][i] * b[i]
        b[k] /= a[k][k]
    return np.array(b)
