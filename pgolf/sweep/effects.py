"""What the rows of a sweep say, and how sure one can be of it.

Every answer is a contrast of row means, sum_c a_c m_c with m_c the mean over the n_c seeds of row c, so its standard
error is s sqrt(sum_c a_c^2 / n_c), s^2 the variance between seeds pooled over all rows. For a factorial with factors A,
B and levels 1 (the first named: the reference) and 2:

    main effect         A       m(A2) - m(A1), every other factor averaged over its levels
    interaction         A x B   ((m(A2 B2) - m(A1 B2)) - (m(A2 B1) - m(A1 B1))) / 2

A factor with more levels has one main effect per level beside the first, an interaction one per pair of such levels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pgolf.errors import InputError

Levels = tuple[str, ...]
"""The level of every factor, in the order of the factors."""


class Effect(NamedTuple):
    """One answer."""

    name: str
    value: float
    """In the unit of the scores; negative is better for BPB."""
    error: float | None
    """Standard error from the spread of seeds; None where no row has two."""

    @property
    def within_noise(self) -> bool:
        """Whether it is smaller than two standard errors."""
        return self.error is not None and abs(self.value) < 2 * self.error


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return math.fsum(values) / len(values)


def seed_spread(rows: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation between seeds, pooled over rows (scores per seed); None where no row has two seeds."""
    freedom = sum(len(row) - 1 for row in rows if row)
    if freedom < 1:
        return None
    return math.sqrt(math.fsum((value - mean(row)) ** 2 for row in rows for value in row) / freedom)


def factorial_effects(factors: Mapping[str, Sequence[str]], scores: Mapping[Levels, Sequence[float]]) -> list[Effect]:
    """Main effects, then two-way interactions; `scores` has one entry, a score per seed, for every combination.

    Raises InputError where a combination has no score: effects of an incomplete factorial are not those of its factors.
    """
    names = list(factors)
    for combination in itertools.product(*factors.values()):
        if not scores.get(combination):
            row = " ".join(f"{name}={level}" for name, level in zip(names, combination, strict=True))
            raise InputError(f"row `{row}` has no score: effects need every row of the factorial")
    spread = seed_spread(list(scores.values()))

    def contrast(name: str, chosen: Mapping[str, str]) -> Effect:
        """(1/2)^(k-1) times the product of (level - first level) over the k chosen factors, others averaged."""
        used = []
        for combination, row in scores.items():
            level = dict(zip(names, combination, strict=True))
            signs = [_sign(level[factor], chosen[factor], factors[factor][0]) for factor in chosen]
            if math.prod(signs):
                used.append((math.prod(signs), row))
        share = 2 / len(used)
        value = math.fsum(share * sign * mean(row) for sign, row in used)
        error = None if spread is None else spread * math.sqrt(math.fsum(share**2 / len(row) for _, row in used))
        return Effect(name, value, error)

    effects = []
    for size in (1, 2):
        for group in itertools.combinations(names, size):
            for levels in itertools.product(*(factors[factor][1:] for factor in group)):
                chosen = dict(zip(group, levels, strict=True))
                effects.append(contrast(" x ".join(f"{f}={level}" for f, level in chosen.items()), chosen))
    return effects


def _sign(level: str, chosen: str, reference: str) -> int:
    return 1 if level == chosen else -1 if level == reference else 0


def differences(base: str, scores: Mapping[str, Sequence[float]]) -> list[Effect]:
    """Every row's mean less that of the row `base`; the spread is pooled over all rows with several seeds."""
    if not scores.get(base):
        raise InputError(f"row `{base}` has no score: there is nothing to compare the other rows with")
    spread, reference = seed_spread(list(scores.values())), scores[base]
    return [
        Effect(
            name,
            mean(row) - mean(reference),
            None if spread is None else spread * math.sqrt(1 / len(row) + 1 / len(reference)),
        )
        for name, row in scores.items()
        if name != base and row
    ]
