"""A^ = L D L^T of a running covariance, the same on every machine.

Matrix products are of whole numbers (fixed point with `FRACTION` bits) whose sums stay below 2^53, so that float64
holds every partial sum exactly and the order in which a BLAS adds them is free. All other steps are element by
element and correctly rounded by IEEE 754.
"""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FRACTION = 18
PANEL = 32
ONE = float(1 << FRACTION)


def ldl(matrix: Array) -> tuple[Array, Array]:
    """L [n, n] (unit lower triangle, times 2^18, whole) and D [n] of a positive definite matrix, times 2^18.

    Panel by panel: inside a panel one column at a time, then the rest of the matrix is updated by one product of the
    panel's rounded factors. Entries of L are clipped to +-16 and pivots kept above 2^-4: a damaged file cannot make the
    numbers grow beyond their bounds.
    """
    n = len(matrix)
    rest = np.rint(matrix * ONE)
    upper, pivots = np.zeros((n, n)), np.empty(n)  # the transpose of L: its rows are contiguous
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        panel = rest[start:stop, start:] * (1 / ONE)
        for k in range(stop - start):
            pivots[start + k] = pivot = max(panel[k, k], 2.0**-4)
            row = np.rint(panel[k, k:] / pivot * ONE)
            row = np.minimum(np.maximum(row, -16 * ONE, out=row), 16 * ONE, out=row)
            row[0] = ONE
            upper[start + k, start + k :] = row
            row *= 1 / ONE
            panel[k + 1 :, k + 1 :] -= (pivot * row[1 : stop - start - k])[:, None] * row[1:]
        left = upper[start:stop, stop:]
        update = left.T @ np.rint(left * pivots[start:stop, None])
        update *= 1 / ONE
        rest[stop:, stop:] -= np.rint(update, out=update)
    return upper.T.copy(), pivots


class RunningCovariance:
    """Second moments of the rows coded so far, the newest weighing most, shrunk to their diagonal."""

    def __init__(self, width: int, variance: float, shrink: float, fade: float) -> None:
        self.sums, self.count = np.zeros((width, width)), 0.0
        self.variance, self.shrink, self.fade = variance, shrink, fade

    def add(self, rows: Array) -> None:
        """Rows [n, width] of whole numbers."""
        kept = max(1.0 - self.fade * len(rows) / 256, 0.25)
        self.sums = np.rint(self.sums * kept) + rows.T @ rows
        self.count = self.count * kept + len(rows)

    def factors(self) -> tuple[Array, Array]:
        """`ldl` of the estimate."""
        diagonal = np.diagonal(self.sums)
        target = (diagonal + 64.0 * self.variance) / (self.count + 64.0)
        matrix = self.sums.copy()
        np.fill_diagonal(matrix, diagonal + self.shrink * target)
        return ldl(matrix / (self.count + self.shrink))
