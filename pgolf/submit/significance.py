"""Is a run better, or lucky? The record rule's test over seeds, and a bootstrap over documents for two single runs.

The rule: beat the record by 0.005 nats per token with p < 0.01 from several seeds (`rules.yaml`). That is a one-sided
Welch test whose null is *better by exactly the margin*, not *equally good*:

    t  = (mean(base) - mean(candidate) - margin) / sqrt(s_a^2/n_a + s_b^2/n_b)
    df = (v_a + v_b)^2 / (v_a^2/(n_a-1) + v_b^2/(n_b-1)),   v = s^2/n,   p = P(T_df > t)

with sample variances (divisor n - 1). The seeds measure what retraining changes. The bootstrap resamples validation
documents and measures something else: whether two given files differ on other documents of the same kind.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.errors import InputError

EPSILON = 2.0**-54
BATCH = 1 << 22
"""Random indices that the bootstrap holds at once."""


class Summary(NamedTuple):
    """One sample."""

    n: int
    mean: float
    std: float | None
    """Sample standard deviation (divisor n - 1); None for a single value."""


class Welch(NamedTuple):
    """Result of the shifted test."""

    t: float
    df: float
    p: float
    """Probability of this t or a larger one if the candidate were better by exactly the margin."""


class Bootstrap(NamedTuple):
    """How far one run is below another, in nats per token, over resampled documents."""

    difference: float
    """Mean loss of the base minus mean loss of the candidate on all documents: positive is better."""
    low: float
    """Lower end of the interval that holds `level` of the resampled differences."""
    high: float
    level: float
    share: float
    """Share of resampled differences that are no gain."""
    documents: int


def summarize_sample(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation, by exactly rounded sums; InputError for no values or infinite ones."""
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"{list(values)} is no sample: give at least one finite number")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Summary(1, mean, None)
    return Summary(len(values), mean, math.sqrt(_squares(values, mean) / (len(values) - 1)))


def shifted_welch(candidate: Sequence[float], base: Sequence[float], margin: float) -> Welch:
    """Test whether the mean of `candidate` lies more than `margin` below that of `base` (losses: lower is better).

    InputError for fewer than two values on a side, and where neither side varies: then no spread is known.
    """
    a, b = summarize_sample(candidate), summarize_sample(base)
    if a.std is None or b.std is None:
        raise InputError(f"the test needs two runs or more on each side, got {a.n} and {b.n}: add seeds")
    va, vb = a.std**2 / a.n, b.std**2 / b.n
    if not va + vb:
        raise InputError("all runs of a side have the same loss, so nothing is known of the spread: use other seeds")
    t = (b.mean - a.mean - margin) / math.sqrt(va + vb)
    ratio = va / (va + vb)  # instead of squared variances, which underflow
    df = 1 / (ratio**2 / (a.n - 1) + (1 - ratio) ** 2 / (b.n - 1))
    return Welch(t, df, student_tail(t, df))


def student_tail(t: float, df: float) -> float:
    """P(T > t) for Student's t with `df` > 0 degrees of freedom, to 1e-13 relative up to df 200, 1e-11 at 1e5.

    For t >= 0 it is I_x(df/2, 1/2)/2 at x = df/(df + t^2), I the regularised incomplete beta function.
    """
    assert df > 0, df
    if t < 0:
        return 1 - student_tail(-t, df)
    if math.isinf(t):
        return 0.0
    a, ratio = df / 2, t / math.sqrt(df)
    y = ratio / math.hypot(1, ratio)  # sqrt(1 - x), without the cancellation
    log_x = -math.log1p(ratio**2) if ratio < 1e150 else -2 * math.log(ratio)
    front = math.exp(a * log_x) * y * _gamma_ratio(a) / math.sqrt(math.pi)  # x^a (1-x)^b / B(a, b), b = 1/2
    x = math.exp(log_x)
    if x < (a + 1) / (a + 2.5):
        return front * _beta_fraction(a, 0.5, x) / a / 2
    return (1 - front * _beta_fraction(0.5, a, y**2) * 2) / 2


def _gamma_ratio(a: float) -> float:
    """Gamma(a + 1/2) / Gamma(a): directly, or for large a by its asymptotic series, where logarithms lose digits."""
    if a < 100:
        return math.gamma(a + 0.5) / math.gamma(a)
    coefficients = (1, -1 / 8, 1 / 128, 5 / 1024, -21 / 32768, -399 / 262144, 869 / 4194304)
    return math.sqrt(a) * math.fsum(c / a**k for k, c in enumerate(coefficients))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b) (DLMF 8.17.22), by Lentz's method; converges fast for x < (a+1)/(a+b+2)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 / (1 + even * d), 1 + even / c
        value *= c * d
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 / (1 + odd * d), 1 + odd / c
        value *= c * d
        if abs(c * d - 1) <= 4 * EPSILON:
            return value
    raise AssertionError(f"no convergence at a={a} b={b} x={x}")


def paired_bootstrap(
    candidate: NDArray[np.floating],
    base: NDArray[np.floating],
    starts: NDArray[np.integer],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Resample documents with replacement; percentile interval of the difference of mean losses.

    `candidate` and `base` [n]: the loss of every target in nats, in the same order; `starts` [D], sorted, from 0: the
    first target of each document. Documents keep their lengths, so every resample is sum of differences over sum of
    tokens. Equal `seed`, equal result.
    """
    if len(candidate) != len(base):
        raise InputError(f"{len(candidate)} losses against {len(base)}: the runs scored different tokens")
    assert not starts[0], starts
    assert (np.diff(starts, append=len(base)) > 0).all(), starts
    difference = base.astype(np.float64) - candidate
    sums = np.add.reduceat(difference, starts)
    lengths = np.diff(starts, append=len(base)).astype(np.float64)
    generator, means, count = np.random.default_rng(seed), np.empty(resamples), len(starts)
    step = max(1, BATCH // count)
    for first in range(0, resamples, step):
        part = means[first : first + step]
        drawn = generator.integers(0, count, (len(part), count))
        part[:] = sums[drawn].sum(1) / lengths[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    share = float((means <= 0).mean())
    return Bootstrap(float(difference.mean()), float(low), float(high), level, share, count)


def _squares(values: Sequence[float], mean: float) -> float:
    return math.fsum((value - mean) ** 2 for value in values)
