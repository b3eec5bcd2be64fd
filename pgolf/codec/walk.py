"""Codes of the block matrices: Gaussian with what scale, energy, columns and a partner matrix say about them.

The matrices of one role are coded together, in blocks of lines, one position of every line at a time. A line is a row
or a column of a matrix. Every code x[line, position] has mean sum_k b[line, k] r_k[line, position], r the same place of
partner lines that are known already, b by ridge regression along the line, drawn to the layer's own b. Its variance:

* rows as lines: a row's energy sum x^2 is known to a few per mille, because its scale came from its own standard
  deviation. So what is left of it, spread over the positions left, in proportion to the columns' variances in the
  blocks before;
* columns as lines: the mean square so far along the line, times what is left of the row's energy after the blocks
  before per column left.

Where scales follow something else than the rows' own deviations, the energies of rows are far apart, but their scales
tell them apart (`Side.rows`): then a row's energy is the expected one, corrected by what the row has shown so far.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.codec.gaussian import Alphabet, integers, scale_of
from pgolf.codec.rans import Coder
from pgolf.codec.ridge import Ridge

Array = np.ndarray[Any, np.dtype[Any]]
Partners = Callable[[Array], Sequence[Array]]
"""Lines [n] -> arrays [positions, layers, n] of whole numbers."""

ENERGY_UNIT = 4096.0
TOLERANCE_UNIT = 4096.0
EVEN = 256.0
EVERY = 8
"""Positions between two solutions of the regression."""
ROW_WEIGHT, POOLED_WEIGHT = 200.0, 3000.0
"""Of what the regression along a row, and that over the lines of a layer, is drawn to; in squares of regressors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What is sent of the matrices [layers, rows, columns] of one role."""

    least: int
    most: int
    energy: Array
    """float64 [layers]: mean square of the codes."""
    tolerance: float
    """Standard deviation of a row's energy, relative to what is expected."""
    rows: Array | None = None
    """float64 [layers, rows]: expected energy of each row, relative to `energy`; None: all rows have the same."""
    states: int = 0
    """Of the trellis that the codes of every column obey (`pgolf.codec.trellis`); 0: none."""

    @property
    def alphabet(self) -> Alphabet:
        """Of the codes."""
        return integers(self.least, self.most)

    @property
    def row_weight(self) -> float:
        """What a row's expected energy weighs, in positions of the row, where `rows` tells it."""
        return 2.0 / max(self.tolerance**2 - 0.002, 0.002)

    @property
    def evening(self) -> Array:
        """Whole numbers [layers, rows]: factors that make the energies of rows alike, in 1/256."""
        assert self.rows is not None
        return np.minimum(np.maximum(np.rint(EVEN / self.rows), 1.0), EVEN * EVEN)


def expected_rows(scales: Sequence[Array]) -> Array | None:
    """Relative energies [layers, rows] of rows of equal deviation under these scales; None for scales beyond sense."""
    steps = np.stack(scales).astype(np.float64)
    if not steps.size or not (np.isfinite(steps).all() and (steps > 0).all()):
        return None
    inverse = 1.0 / (steps * steps)
    rows: Array = inverse / np.array([[math.fsum(layer) / len(layer)] for layer in inverse.tolist()])
    return np.maximum(rows, 2.0**-20)


def measure(codes: Array, rows: Array | None = None) -> Side:
    """Side information of codes int8 [layers, rows, columns], rounded as it is sent; `rows` as in `Side`."""
    squares = np.square(codes, dtype=np.int32).sum(axis=2).astype(np.float64)  # whole numbers, [layers, rows]
    squares = squares if rows is None else squares / rows
    energy = squares.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.mean(np.square(squares / np.maximum(energy, 1.0) - 1)))
    return Side(
        least=int(codes.min()),
        most=int(codes.max()),
        energy=np.rint(energy[:, 0] / codes.shape[2] * ENERGY_UNIT).clip(1, (1 << 24) - 1) / ENERGY_UNIT,
        tolerance=float(np.rint(spread * TOLERANCE_UNIT).clip(1, (1 << 12) - 1) / TOLERANCE_UNIT),
        rows=rows,
    )


def code_rows(
    coder: Coder,
    codes: Array,
    side: Side,
    blocks: Sequence[Array],
    partners: Partners | None,
    column_weight: float,
) -> None:
    """Code int8 [layers, rows, columns], rows as lines; a decoder fills `codes`.

    `blocks` are the row numbers of each block, `column_weight` that of an equal variance of all columns, in rows.
    """
    layers, _, width = codes.shape
    sums, done = np.zeros((width, layers)), 0
    pool: dict[int, Ridge] = {}
    for rows in blocks:
        x = np.ascontiguousarray(codes[:, rows].transpose(2, 0, 1))
        relative = (column_weight + sums / side.energy) / (column_weight + done)
        scale: _RowEnergy | _LineEnergy = _RowEnergy(side, relative, (layers, len(rows)))
        if side.rows is not None:
            scale = _LineEnergy(relative * side.energy, side.row_weight, (layers, len(rows)), side.rows[:, rows])
        _code_block(coder, x, side, scale, partners(rows) if partners else [], pool, ROW_WEIGHT)
        codes[:, rows] = x.transpose(1, 2, 0)
        if side.rows is None:
            sums += np.square(x, dtype=np.int32).sum(axis=2)
        else:
            sums += (np.square(x, dtype=np.int32) * side.evening[:, rows]).sum(axis=2) * (1 / EVEN)
        done += len(rows)


def code_columns(
    coder: Coder,
    codes: Array,
    side: Side,
    blocks: Sequence[Array],
    partners: Partners | None,
    line_weight: float,
    weight: float,
) -> None:
    """Code int8 [layers, rows, columns], columns as lines; `blocks` are the column numbers of each block.

    `line_weight` is that of the expected variance of a line, in codes, `weight` that of the pooled regression.
    """
    layers, height, width = codes.shape
    used, done = np.zeros((height, layers)), 0
    pool: dict[int, Ridge] = {}
    for columns in blocks:
        x = np.ascontiguousarray(codes[:, :, columns].transpose(1, 0, 2))
        rest = width - done
        trust = _trust(side, rest * np.square(side.energy), width)
        left = trust * (side.energy * width - used) + (1 - trust) * side.energy * rest
        level = np.maximum(left / rest, side.energy / 4)
        if side.rows is not None:
            expected = side.energy * side.rows.T
            level = expected * ((side.row_weight + used / expected) / (side.row_weight + done))
        scale = _LineEnergy(level, line_weight, (layers, len(columns)))
        _code_block(coder, x, side, scale, partners(columns) if partners else [], pool, weight)
        codes[:, :, columns] = x.transpose(1, 0, 2)
        used += np.square(x, dtype=np.int32).sum(axis=2)
        done += len(columns)


def _trust(side: Side, spread: Array, width: int) -> Array:
    """Weight of 'a row's energy is as sent' against 'the rest is independent', both as variances of the rest."""
    trust: Array = 2 * spread / (2 * spread + np.square(side.tolerance * side.energy * width))
    return trust


class _RowEnergy:
    """Variance of the next position from the energy that a row has left."""

    def __init__(self, side: Side, relative: Array, shape: tuple[int, int]) -> None:
        width = len(relative)
        rest = _sums_from_here(relative)
        relative = relative * (width / rest[0])
        rest = _sums_from_here(relative)
        squares = _sums_from_here(np.square(relative))
        self.gain = relative / rest
        self.trust = _trust(side, squares * np.square(side.energy), width)
        self.offset = self.trust * side.energy * width + (1 - self.trust) * side.energy * rest
        self.least = side.energy * relative / 5
        self.used = np.zeros(shape)

    def variance(self, position: int, explained: Array | float) -> Array:
        """[layers, lines]; `explained`: energy of the means that are still to come."""
        left = self.offset[position][:, None] - self.trust[position][:, None] * self.used - explained
        variance: Array = np.maximum(left * self.gain[position][:, None], self.least[position][:, None])
        return variance

    def add(self, position: int, codes: Array, error: Array) -> None:
        self.used += codes * codes


class _LineEnergy:
    """Variance of the next position from the mean square so far along the line; `level` [positions, layers].

    `lines` [layers, lines] are further factors of the lines.
    """

    def __init__(self, level: Array, weight: float, shape: tuple[int, int], lines: Array | float = 1.0) -> None:
        self.level, self.sums, self.count, self.lines = level, np.full(shape, weight), weight, lines

    def variance(self, position: int, explained: Array | float) -> Array:
        variance: Array = self.sums * (self.level[position] / self.count)[:, None] * self.lines
        return variance

    def add(self, position: int, codes: Array, error: Array) -> None:
        self.sums += error * error / (self.level[position][:, None] * self.lines)
        self.count += 1


def _sums_from_here(values: Array) -> Array:
    """Over the first axis, from each position to the end; `cumsum` adds one after the other."""
    sums: Array = np.cumsum(values[::-1], axis=0)[::-1]
    return sums


def _code_block(
    coder: Coder,
    x: Array,
    side: Side,
    scale: _RowEnergy | _LineEnergy,
    partners: Sequence[Array],
    pool: dict[int, Ridge],
    weight: float,
) -> None:
    """Code x int8 [positions, layers, lines] position by position; `pool` keeps the layers' regressions of the role."""
    positions, *shape = x.shape
    alphabet, count = side.alphabet, len(partners)
    if side.states:  # positions are rows
        from pgolf.codec.trellis import Halved

        coder = Halved(coder, side.states, side.least, side.most)
    ridge, earlier = Ridge(count, (shape[0], shape[1])), pool.setdefault(count, Ridge(count, (shape[0], 1)))
    mean, explained = np.zeros(shape), 0.0
    known = [
        sum(first * second for first, second in zip(partners[i], partners[j], strict=True)) for i, j in ridge.square
    ]
    for position in range(positions):
        regressors = [partner[position] for partner in partners]
        if count:
            if position % EVERY == 0:
                b = ridge.solve(weight, ridge.pooled().merged(earlier).solve(POOLED_WEIGHT, [0.0] * count))
            mean = np.rint(sum(factor * r for factor, r in zip(b, regressors, strict=True)) * 256.0)
            if isinstance(scale, _RowEnergy):
                explained = sum(
                    b[i] * b[j] * (total - ridge.square[i, j]) * (1 if i == j else 2)
                    for (i, j), total in zip(ridge.square, known, strict=True)
                )
        inverse = scale_of(scale.variance(position, explained))
        symbols = coder.code(alphabet, x[position].ravel().astype(np.intp) - side.least, mean.ravel(), inverse.ravel())
        codes = (symbols + side.least).reshape(shape).astype(np.float64)
        x[position] = codes
        scale.add(position, codes, codes - mean * (1 / 256))
        ridge.add(codes, regressors)
    if count:
        pool[count] = ridge.pooled().merged(earlier)
