"""Running ridge regression on one or two regressors, for many targets at once, element by element.

    b = (A + w I)^-1 (c + w b0),   A = sum r r^T,   c = sum x r

Targets and regressors are whole numbers, so the sums are exact; the solution is Cramer's rule, correctly rounded steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Ridge:
    """Sums of targets [...] and 0, 1 or 2 regressors [...]."""

    def __init__(self, regressors: int, shape: tuple[int, ...]) -> None:
        self.cross = [np.zeros(shape) for _ in range(regressors)]
        self.square = {(i, j): np.zeros(shape) for i in range(regressors) for j in range(i, regressors)}

    def add(self, target: Array, regressors: Sequence[Array]) -> None:
        """One more observation of every target."""
        for i, first in enumerate(regressors):
            self.cross[i] += target * first
            for j in range(i, len(regressors)):
                self.square[i, j] += first * regressors[j]

    def add_all(self, target: Array, regressors: Sequence[Array]) -> None:
        """Several observations of every target, along a first axis."""
        for i, first in enumerate(regressors):
            self.cross[i] += (target * first).sum(axis=0)
            for j in range(i, len(regressors)):
                self.square[i, j] += (first * regressors[j]).sum(axis=0)

    def pooled(self) -> "Ridge":
        """The sums over the last axis, which keeps the length 1."""
        total = Ridge(0, ())
        total.cross = [part.sum(axis=-1, keepdims=True) for part in self.cross]
        total.square = {key: part.sum(axis=-1, keepdims=True) for key, part in self.square.items()}
        return total

    def merged(self, other: "Ridge") -> "Ridge":
        """Sums over both."""
        total = Ridge(0, ())
        total.cross = [a + b for a, b in zip(self.cross, other.cross, strict=True)]
        total.square = {key: part + other.square[key] for key, part in self.square.items()}
        return total

    def solve(self, weight: float, prior: Sequence[Any]) -> list[Array]:
        """Coefficients, drawn to `prior` as strongly as `weight` units of squared regressor would."""
        right = [cross + weight * b for cross, b in zip(self.cross, prior, strict=True)]
        if not right:
            return []
        if len(right) < 2:
            return [part / (self.square[0, 0] + weight) for part in right]
        a, b, d = self.square[0, 0] + weight, self.square[0, 1], self.square[1, 1] + weight
        determinant = a * d - b * b
        return [(right[0] * d - right[1] * b) / determinant, (right[1] * a - right[0] * b) / determinant]
