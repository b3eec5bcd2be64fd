"""Effects and their errors against formulas worked out by hand, and against least squares."""

import itertools
import math

import numpy as np
import pytest

from pgolf.errors import InputError
from pgolf.sweep.effects import Effect, differences, factorial_effects, seed_spread

TWO = {"a": ["off", "on"], "b": ["off", "on"]}


def test_two_switches_by_hand():
    """Rows 1, 3, 4, 12 (a off/on within b off/on): a = ((3 - 1) + (12 - 4))/2, b = ((4-1) + (12-3))/2."""
    scores = {("off", "off"): [1.0], ("on", "off"): [3.0], ("off", "on"): [4.0], ("on", "on"): [12.0]}
    found = {effect.name: effect for effect in factorial_effects(TWO, scores)}
    assert {name: effect.value for name, effect in found.items()} == {"a=on": 5, "b=on": 6, "a=on x b=on": 3}
    assert all(effect.error is None and not effect.within_noise for effect in found.values())


def test_additive_switches_have_no_interaction_and_their_own_effects():
    factors = {name: ["off", "on"] for name in "abc"}
    size = {"a": -0.01, "b": 0.02, "c": 0.0}
    scores = {
        levels: [1.2 + sum(size[name] for name, level in zip("abc", levels, strict=True) if level == "on")]
        for levels in itertools.product(*factors.values())
    }
    found = {effect.name: effect.value for effect in factorial_effects(factors, scores)}
    assert found == pytest.approx(
        {"a=on": -0.01, "b=on": 0.02, "c=on": 0, "a=on x b=on": 0, "a=on x c=on": 0, "b=on x c=on": 0}
    )


def test_two_level_effects_and_errors_are_those_of_least_squares():
    """y = m + sum_i a_i x_i / 2 + sum_ij a_ij x_i x_j / 2, x = -1 or 1, noise of the replicates about the cells."""
    random = np.random.default_rng(0)
    factors = {name: ["off", "on"] for name in "abc"}
    scores = {levels: list(random.normal(size=3)) for levels in itertools.product(*factors.values())}
    rows, values = [], []
    for levels, replicates in scores.items():
        x = [1 if level == "on" else -1 for level in levels]
        rows += [[1, *(v / 2 for v in x), *(p * q / 2 for p, q in itertools.combinations(x, 2))]] * len(replicates)
        values += replicates
    design = np.array(rows)
    fitted = np.linalg.lstsq(design, np.array(values), rcond=None)[0]
    found = factorial_effects(factors, scores)
    assert [effect.value for effect in found] == pytest.approx(fitted[1:])
    variance = np.mean([np.var(replicates, ddof=1) for replicates in scores.values()])
    errors = np.sqrt(np.diag(variance * np.linalg.inv(design.T @ design)))
    assert [effect.error for effect in found] == pytest.approx(errors[1:])


def test_more_levels_are_each_compared_with_the_first():
    factors = {"size": ["s", "m", "l"], "bits": ["six", "five"]}
    score = {"s": 10.0, "m": 20.0, "l": 40.0, "six": 0.0, "five": 1.0}
    scores = {levels: [sum(score[level] for level in levels)] for levels in itertools.product(*factors.values())}
    scores["l", "five"] = [44.0]  # 3 beyond the sum
    found = {effect.name: effect.value for effect in factorial_effects(factors, scores)}
    expected = {"size=m": 10, "size=l": 31.5, "bits=five": 2, "size=m x bits=five": 0, "size=l x bits=five": 1.5}
    assert found == pytest.approx(expected)


def test_spread_is_pooled_over_rows():
    """Squared deviations 2 and 8 with one and two degrees of freedom; a single seed says nothing."""
    assert seed_spread([[1.0, 3.0], [0.0, 2.0, 4.0], [7.0]]) == pytest.approx(math.sqrt((2 + 8) / 3))
    assert seed_spread([[1.0], [2.0], []]) is None
    assert seed_spread([[1.0, 3.0], []]) == pytest.approx(math.sqrt(2))


def test_an_ablation_is_a_difference_of_means_with_the_spread_of_both():
    scores = {"base": [1.0, 2.0, 3.0], "far": [6.0], "near": [3.0], "missing": []}
    far, near = differences("base", scores)
    assert (far.name, far.value, near.name, near.value) == ("far", 4.0, "near", 1.0)
    assert far.error == near.error == pytest.approx(math.sqrt(1 / 3 + 1))  # the variance of 1, 2, 3 is 1
    assert (far.within_noise, near.within_noise) == (False, True)


@pytest.mark.parametrize(("errors", "within"), [(1.9, True), (2.0, False), (2.5, False), (-1.9, True), (-2.5, False)])
def test_noise_ends_at_two_standard_errors(errors, within):
    assert Effect("x", errors * 0.25, 0.25).within_noise == within


def test_an_incomplete_sweep_has_no_effects():
    with pytest.raises(InputError, match=r"row `a=on b=on` has no score"):
        factorial_effects(TWO, {("off", "off"): [1.0], ("on", "off"): [3.0], ("off", "on"): [4.0], ("on", "on"): []})
    with pytest.raises(InputError, match=r"row `base` has no score"):
        differences("base", {"base": [], "off": [1.0]})
