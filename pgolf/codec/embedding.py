"""Codes of the tied embedding: linear prediction inside a row, and from up to two rows that are known already.

Rows are coded in order of falling scale, in blocks, column by column. With the running covariance A^ = L D L^T of the
rows before the block, column j of a row is

    x_j = sum_{k<j} L_jk e_k + e_j,     e_j / sqrt(D_j) = w_j ~ N(b1 p1_j + b2 p2_j, v)

e is the row's innovation, p1 and p2 are innovations w of its parents: earlier rows that resemble it once the covariance
is taken out (words that differ in case, in a leading space). Parents are sent; b is ridge regression along the row, v
the mean square so far along the row. Everything is held in whole numbers: L in 2^-18, e in 2^-8, w in 2^-6.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pgolf.codec.covariance import ONE, RunningCovariance
from pgolf.codec.gaussian import scale_of
from pgolf.codec.rans import Coder, Uniform, flat
from pgolf.codec.ridge import Ridge
from pgolf.codec.walk import Side

Array = np.ndarray[Any, np.dtype[Any]]

PARENTS = 2
UNIT = 64.0
"""Innovations w are kept in 1/64 of their standard deviation."""
SHRINK, FADE = 1536.0, 0.07
"""Weight of the diagonal in rows, and what 256 new rows take from the weight of all before."""
ROW_WEIGHT, PARENT_WEIGHT = 130.0, 120.0 * UNIT**2
LIKENESS, RELIEF = 0.27, 0.18
"""Expected coefficient of a parent, and by how much a row with a parent is expected to vary less."""
EVERY = 4
"""Columns between two looks at what the row has shown so far; divides PANEL."""
PANEL = 64
PARENT_BITS = 14.5
"""Least gain, in bits, that pays for sending a parent."""
_BOUND = 2.0**15


def row_blocks(count: int) -> list[slice]:
    """Blocks of `count` rows: 1/32 each, smaller at the start, where little is known, and among the rarest rows."""
    size = max(64, -(-count // 32))
    sizes = [size // 2] * 4 + [size] * max(0, count // size - 4) + [size // 4] * 8
    ends = np.minimum(np.cumsum([0, *sizes]), count).tolist()
    tail = ends.index(max(ends))
    ends = [*ends[:tail], count]
    return [slice(a, b) for a, b in pairwise(ends) if b > a]


def code_embedding(coder: Coder, codes: Array, side: Side, parents: Array) -> Array:
    """Code int8 [rows, columns] with their parents int [rows, 2] (row number, or -1); a decoder fills both.

    Returns the innovations w float32 [rows, columns]. Parents of a block are sent before it.
    """
    rows, columns = codes.shape
    covariance = RunningCovariance(columns, float(side.energy[0]), SHRINK, FADE)
    known = np.zeros((rows, columns), np.float32)
    for part in row_blocks(rows):
        _code_parents(coder, parents[part], part.start)
        lower, pivots = covariance.factors()
        refs = [_chosen(known, parents[part, k]) for k in range(PARENTS)] if (parents[part] >= 0).any() else []
        x = np.ascontiguousarray(codes[part].T)
        w = _code_block(coder, x, side, lower, pivots, refs, parents[part, 0] >= 0)
        codes[part], known[part] = x.T, w.T
        covariance.add(codes[part].astype(np.float64))
    return known


def _chosen(known: Array, parent: Array) -> Array:
    """Innovations float64 [columns, n] of each row's parent, 0 where it has none."""
    return np.where(parent >= 0, known[np.maximum(parent, 0)].T, 0).astype(np.float64)


def _code_parents(coder: Coder, parents: Array, start: int) -> None:
    """A flag for every row, and for flagged ones the number of a row before `start`; for those the same once more."""
    if not start:
        parents[:] = -1
        return
    asked = np.arange(len(parents))
    for k in range(PARENTS):
        flags = coder.code(Uniform(2), (parents[asked, k] >= 0).astype(np.intp), *flat(len(asked)))
        parents[asked[flags == 0], k:] = -1
        asked = asked[flags == 1]
        parents[asked, k] = coder.code(Uniform(start), parents[asked, k], *flat(len(asked)))


def _code_block(
    coder: Coder, x: Array, side: Side, lower: Array, pivots: Array, refs: Sequence[Array], related: Array
) -> Array:
    """Code x int8 [columns, n]; returns w float64 [columns, n]."""
    columns, n = x.shape
    alphabet = side.alphabet
    deviation = np.sqrt(pivots)
    innovations, w = np.zeros((columns, n)), np.empty((columns, n))
    ridge, b = Ridge(len(refs), (n,)), [np.zeros(n) for _ in refs]
    fit = np.zeros(n)
    squares = ROW_WEIGHT * UNIT**2 * (1.0 - RELIEF * related)
    for start in range(0, columns, PANEL):
        stop = min(start + PANEL, columns)
        before = lower[start:stop, :start] @ innovations[:start]
        for j in range(start, stop):
            if j % EVERY == 0:
                if refs and j:
                    ridge.add_all(w[j - EVERY : j], [ref[j - EVERY : j] for ref in refs])
                b = ridge.solve(PARENT_WEIGHT, [LIKENESS] * len(refs))
                level = squares / ((ROW_WEIGHT + j) * UNIT**2)
            linear = _bounded(np.rint((before[j - start] + lower[j, start:j] @ innovations[start:j]) * (1 / ONE)))
            mean = linear
            if refs:
                fit = b[0] * refs[0][j]
                fit += b[1] * refs[1][j]
                fit = np.rint(fit, out=fit)
                mean = _bounded(linear + np.rint(fit * (deviation[j] * (256.0 / UNIT))))
            symbols = coder.code(alphabet, x[j].astype(np.intp) - side.least, mean, scale_of(level * pivots[j]))
            symbols = symbols + side.least
            x[j] = symbols
            innovations[j] = symbols * 256.0 - linear
            w[j] = np.rint(innovations[j] * (UNIT / 256.0 / deviation[j]))
            error = w[j] - fit
            squares += error * error
    return w


def _bounded(values: Array) -> Array:
    """Within +-128 codes: what a damaged file cannot make grow."""
    return np.minimum(np.maximum(values, -_BOUND, out=values), _BOUND, out=values)


def find_parents(known: Array) -> Array:
    """Parents int [rows, 2] of innovations w float32 [rows, columns], each in an earlier block; -1 where none pays.

    The likeliest parent is the row of largest |cosine|, the second one that of the remainder; a cosine c saves
    -columns/2 log2(1 - c^2) bits. Only the encoder decides this: no bit of it needs to be the same elsewhere.
    """
    rows, columns = known.shape
    parents = np.full((rows, PARENTS), -1)
    norm = np.sqrt(np.maximum(np.square(known).sum(axis=1), 1))
    for part in row_blocks(rows)[1:]:
        rest, asked = known[part].copy(), np.arange(part.start, part.stop)
        for k in range(PARENTS):
            likeness = rest @ known[: part.start].T / norm[: part.start]
            best = np.abs(likeness).argmax(axis=1)
            dot = likeness[np.arange(len(asked)), best]
            cosine2 = np.minimum(dot * dot / np.maximum(np.square(rest).sum(axis=1), 1), 0.9999)
            pays = -0.5 * columns * np.log2(1 - cosine2) > PARENT_BITS
            asked, best, rest = asked[pays], best[pays], rest[pays]
            parents[asked, k] = best
            rest = rest - (dot[pays] / norm[best])[:, None] * known[best]
    return parents
