"""Codes of the tied embedding: linear prediction inside a row, and from up to two rows that are known already.

Rows are coded in order of falling scale, in blocks, column by column. With the running covariance A^ = L D L^T of the
rows before the block, column j of a row is

    x_j = sum_{k<j} L_jk e_k + e_j,     e_j / sqrt(D_j) = w_j ~ N(b1 p1_j + b2 p2_j, v)

e is the row's innovation, p1 and p2 are innovations w of its parents: rows that resemble it once the covariance is
taken out (words that differ in case, in a leading space). Parents are sent; b is ridge regression along the row, v
the mean square so far along the row. Everything is held in whole numbers: L in 2^-18, e in 2^-8, w in 2^-6.

A parent may be in the same block: a row then runs a column behind it. So a block's rows have depths, 0 without such a
parent, and at step t a row of depth d is at column t - d; arrays [steps, rows] are sheared in this way.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.covariance import ONE, RunningCovariance
from pgolf.codec.gaussian import scale_of
from pgolf.codec.rans import Coder, Uniform, flat
from pgolf.codec.ridge import Ridge
from pgolf.codec.walk import Side

Array = np.ndarray[Any, np.dtype[Any]]

PARENTS = 2
DEPTH = 10
"""Greatest depth of a row."""
UNIT = 64.0
"""Innovations w are kept in 1/64 of their standard deviation."""
SHRINK, FADE = 1536.0, 0.07
"""Weight of the diagonal in rows, and what 256 new rows take from the weight of all before."""
ROW_WEIGHT, PARENT_WEIGHT = 130.0, 120.0 * UNIT**2
LIKENESS, RELIEF = 0.27, 0.18
"""Expected coefficient of a parent, and by how much a row with a parent is expected to vary less."""
EVERY = 8
"""Steps between two looks at what the row has shown so far."""
PANEL = 32
EVENED = 16.0
"""Unit of rows that were made alike for the covariance, per code step."""
PARENT_BITS = 14.5
"""Least gain, in bits, that pays for sending a parent."""
BOUND = 2.0**15
"""128 codes: what a damaged file cannot make a prediction exceed."""


def row_blocks(count: int) -> list[slice]:
    """Blocks of `count` rows: 1/16 each, smaller at the start, where little is known, and among the rarest rows."""
    size = max(64, -(-count // 16))
    sizes = [size // 4] * 2 + [size // 2] * 2 + [size] * max(0, count // size - 3) + [size // 2] * 3
    ends = np.minimum(np.cumsum([0, *sizes]), count).tolist()
    tail = ends.index(max(ends))
    ends = [*ends[:tail], count]
    return [slice(a, b) for a, b in pairwise(ends) if b > a]


def code_embedding(coder: Coder, codes: Array, side: Side, parents: Array) -> None:
    """Code int8 [rows, columns] with their parents int [rows, 2] (row number, or -1); a decoder fills both.

    Parents of a block are sent before it.
    """
    rows, columns = codes.shape
    covariance, size = _covariance(columns, side), _sizes(rows, side)
    known = np.zeros((rows, columns), np.float32)
    for part in row_blocks(rows):
        _code_parents(coder, parents[part], part.stop)
        depth = depths(parents[part] - part.start)
        order = np.argsort(depth, kind="stable")
        place = np.argsort(order)  # where a row of the block went
        shear = _Shear(depth[order], columns)
        kin = _Kin(parents[part][order], known, part.start, shear, place)
        x = shear.sheared(codes[part][order].T)
        w = _code_block(coder, x, side, _factors(covariance, side), shear, kin, size[part][order])
        codes[part] = shear.straight(x).T[place]
        known[part] = shear.straight(w).T[place]
        covariance.add(_evened(codes[part], size[part], side))


def _sizes(rows: int, side: Side) -> Array:
    """Expected deviations [rows] of the rows, relative to that of the matrix."""
    return np.ones(rows) if side.rows is None else np.sqrt(side.rows[0])


def _evened(codes: Array, size: Array, side: Side) -> Array:
    """Whole numbers [n, columns] in which all rows count alike."""
    rows = codes.astype(np.float64)
    return rows if side.rows is None else np.rint(rows * (EVENED / size)[:, None])


def _covariance(columns: int, side: Side) -> RunningCovariance:
    gain = 1.0 if side.rows is None else EVENED**2
    return RunningCovariance(columns, float(side.energy[0]) * gain, SHRINK, FADE)


def _factors(covariance: RunningCovariance, side: Side) -> tuple[Array, Array]:
    """L and D of the codes, for rows of the expected deviation 1."""
    lower, pivots = covariance.factors()
    return lower, pivots if side.rows is None else pivots * (1 / EVENED**2)


def depths(parents: Array) -> Array:
    """Depths [n] of rows with these parents [n, 2] in their own block (below 0: in none)."""
    depth = np.zeros(len(parents), np.intp)
    for _ in range(DEPTH + 1):
        shallower, depth = depth, np.where(parents >= 0, depth[np.maximum(parents, 0)] + 1, 0).max(axis=1)
    if (shallower != depth).any():
        raise CorruptStreamError("rows of the embedding are their own ancestors, or too deep")
    return depth


class _Shear:
    """Arrays [columns, n], rows in order of `depth` [n], as arrays [steps, n] where every row starts `depth` later."""

    def __init__(self, depth: Array, columns: int) -> None:
        self.depth, self.columns, self.top = depth, columns, int(depth[-1])
        ends = np.searchsorted(depth, np.arange(self.top + 2)).tolist()
        self.parts = [slice(a, b) for a, b in pairwise(ends)]

    def sheared(self, values: Array) -> Array:
        """Steps that a row has no column for hold 0; as many as the greatest depth follow the last one."""
        out = np.zeros((self.columns + 2 * self.top, len(self.depth)), values.dtype)
        for depth, part in enumerate(self.parts):
            out[depth : depth + self.columns, part] = values[:, part]
        return out

    def active(self, t: int) -> slice:
        """Rows that have a column at step t."""
        return slice(self.parts[max(0, t - self.columns + 1)].start, self.parts[min(t, self.top)].stop)

    def straight(self, values: Array) -> Array:
        """The inverse of `sheared`."""
        return np.concatenate([values[d : d + self.columns, part] for d, part in enumerate(self.parts)], axis=1)


class _Kin:
    """Innovations `refs` [steps, n] of each row's two parents, 0 where it has none."""

    def __init__(self, parents: Array, known: Array, start: int, shear: _Shear, place: Array) -> None:
        self.related, self.refs, self.links = parents[:, 0] >= 0, [], []
        for parent in parents.T:
            before = (parent >= 0) & (parent < start)
            self.refs.append(shear.sheared(known[parent].T.astype(np.float64) * before))
            child = np.flatnonzero(parent >= start)
            inner = place[parent[child] - start]
            self.links.append(((shear.depth[child] - shear.depth[inner]) * len(place) + child, inner))

    def born(self, t: int, w: Array) -> None:
        """Innovations [n] of step t, for the parents in the block itself."""
        for ref, (child, parent) in zip(self.refs, self.links, strict=True):
            if len(child):
                ref.put(child + t * len(w), w.take(parent))


def _code_parents(coder: Coder, parents: Array, count: int) -> None:
    """A flag for every row, and for flagged ones the number of a row below `count`; for those the same once more."""
    asked = np.arange(len(parents))
    for k in range(PARENTS):
        flags = coder.code(Uniform(2), (parents[asked, k] >= 0).astype(np.intp), *flat(len(asked)))
        parents[asked[flags == 0], k:] = -1
        asked = asked[flags == 1]
        parents[asked, k] = coder.code(Uniform(count), parents[asked, k], *flat(len(asked)))


def _code_block(
    coder: Coder, x: Array, side: Side, factors: tuple[Array, Array], shear: _Shear, kin: _Kin, size: Array
) -> Array:
    """Code x int8 [steps, n] of rows with relative deviations `size` [n]; returns w float64 [steps, n]."""
    lower, pivots = factors
    alphabet, depth, n = side.alphabet, shear.depth, x.shape[1]
    deviation = np.sqrt(pivots)
    coarser, finer = deviation * (256.0 / UNIT), UNIT / 256.0 / deviation
    prediction, w = _Linear(lower, shear, x.shape), np.zeros(x.shape)
    ridge, squares = Ridge(PARENTS, (n,)), ROW_WEIGHT * UNIT**2 * (1.0 - RELIEF * kin.related)
    for t in range(shear.columns + shear.top):
        if t % EVERY == 0:
            if t:
                ridge.add_all(w[t - EVERY : t], [ref[t - EVERY : t] for ref in kin.refs])
            b = ridge.solve(PARENT_WEIGHT, [LIKENESS] * PARENTS)
            level = squares / ((ROW_WEIGHT + (t - depth)) * UNIT**2)
        on = shear.active(t)
        column = t - depth[on]
        linear = np.rint(prediction.at(t)[on] * (1 / ONE))
        linear = np.minimum(np.maximum(linear, -BOUND, out=linear), BOUND, out=linear)
        fit = b[0][on] * kin.refs[0][t, on]
        fit += b[1][on] * kin.refs[1][t, on]
        fit = np.rint(fit, out=fit)
        mean = linear + np.rint(fit * (coarser[column] * size[on]))
        inverse = scale_of(level[on] * pivots[column] * (size[on] * size[on]))
        symbols = coder.code(alphabet, x[t, on].astype(np.intp) - side.least, mean, inverse) + side.least
        x[t, on] = symbols
        prediction.innovations[t, on] = error = symbols * 256.0 - linear
        w[t, on] = error = np.rint(error * (finer[column] / size[on]))
        error -= fit
        error *= error
        squares[on] += error
        kin.born(t, w[t])
    return w


class _Linear:
    """sum_{k<j} L_jk e_k for the columns j of a step, from `innovations` [steps, n] of the steps before."""

    def __init__(self, lower: Array, shear: _Shear, shape: tuple[int, ...]) -> None:
        self.lower, self.shear, self.innovations = lower, shear, np.zeros(shape)
        self.before, self.sums = np.empty((PANEL, shape[1])), np.empty(shape[1])

    def at(self, t: int) -> Array:
        """Sums [n] of whole numbers, those of rows without a column at step t without meaning."""
        for depth, part in enumerate(self.shear.parts):
            j = t - depth
            if part.start < part.stop and 0 <= j < self.shear.columns:
                k = j % PANEL
                if not k:
                    panel = self.lower[j : j + PANEL, :j] @ self.innovations[depth:t, part]
                    self.before[: len(panel), part] = panel
                sums = np.dot(self.lower[j, j - k : j], self.innovations[t - k : t, part], out=self.sums[part])
                sums += self.before[k, part]
        return self.sums


def innovations(codes: Array, side: Side) -> Array:
    """About the w float32 [rows, columns] that `code_embedding` will meet, for the choice of parents."""
    covariance, size = _covariance(codes.shape[1], side), _sizes(len(codes), side)
    known = np.empty(codes.shape, np.float32)
    for part in row_blocks(len(codes)):
        lower, pivots = _factors(covariance, side)
        rows = codes[part] / size[part][:, None]
        known[part] = np.linalg.solve(lower / ONE, rows.T).T * (UNIT / np.sqrt(pivots))
        covariance.add(_evened(codes[part], size[part], side))
    return known


def find_parents(known: Array) -> Array:
    """Parents int [rows, 2] of innovations w float32 [rows, columns], each an earlier row; -1 where none pays.

    The likeliest parent is the row of largest |cosine|, the second one that of the remainder; a cosine c saves
    -columns/2 log2(1 - c^2) bits. Second parents make no row deeper. Only the encoder decides this: no bit of it needs
    to be the same elsewhere.
    """
    parents = np.full((len(known), PARENTS), -1)
    norm = np.sqrt(np.maximum(np.square(known).sum(axis=1), 1))
    unit = known / norm[:, None]
    for part in row_blocks(len(known)):
        n, start = part.stop - part.start, part.start
        likeness = np.abs(unit[part] @ unit[: part.stop].T)
        likeness[:, start:] *= np.tri(n, k=-1)
        depth, least = np.zeros(n, np.intp), 1 - 2 ** (-2 * PARENT_BITS / known.shape[1])
        for i in range(n):
            best = likeness[i].argmax()
            if likeness[i, best] ** 2 > least:
                parents[start + i, 0] = best
                depth[i] = depth[best - start] + 1 if best >= start else 0
                if depth[i] == DEPTH:
                    likeness[:, start + i] = 0
        asked = np.flatnonzero(parents[part, 0] >= 0)
        first = unit[parents[start + asked, 0]]
        rest = known[start + asked]
        rest = rest - (rest * first).sum(axis=1, keepdims=True) * first
        likeness = np.abs(rest @ unit[: part.stop].T)
        likeness[:, start:] *= depth < depth[asked, None]
        best = likeness.argmax(axis=1)
        pays = likeness[np.arange(len(asked)), best] ** 2 > least * np.square(rest).sum(axis=1)
        parents[start + asked[pays], 1] = best[pays]
    return parents
