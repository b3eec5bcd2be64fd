"""Fit to the cap: one factor on every clip, found with real sizes, so that code and model end just below the target.

The step of a matrix in standard deviations of its rows, k / c, sets its rate: bits = 2.05 - log2(k / c) for a Gaussian
(its entropy on a fine grid), so N codes shrink by N / 8 bytes where all steps double. From there a secant on the log of
the common factor, each point quantized and encoded for real, needs two or three points. A submission was lost to 1 kB
too much, others left 100 kB unused (PR 401, 1520, 1809, 1978).

The widths follow from the steps: the least bits whose range holds every weight of the matrix (and 8 standard
deviations). They cost nothing, because what is stored is as long as the codes' entropy. How the bits are spread over
the matrices is the scheme's: by its clips, or where every weight costs the same loss (`steps: loss`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig, TensorConfig
from pgolf.quant.policy import resolve
from pgolf.quant.quantize import Quantized
from pgolf.quant.rate import predicted_bytes

SLACK, LEAST_SLACK = 1 / 1600, 256
"""Accepted below the limit: 10 kB of 16 MB; at least so many bytes, for a codec has noise."""
TRIALS = 8
OCTAVES = 5.0
"""Largest factor and its inverse, as a power of 2: steps of 12 standard deviations leave nothing to store."""
LEAST_MOVE = 0.01
"""In octaves: over less a codec's own noise is not small against the difference."""
REACH = 8.0
"""Standard deviations that every grid must hold: a Gaussian matrix of a million weights reaches 5."""
WIDEST = 127
"""Largest code of 8 bits."""


class Trial(NamedTuple):
    """One point of the search."""

    factor: float
    bytes: int


class Fitted(NamedTuple):
    """A quantization that fits."""

    quantized: Quantized
    config: QuantizeConfig
    """The scheme with every clip and width that was chosen, as exceptions by name."""
    bytes_model: int
    trials: list[Trial]


def fit(
    state: Mapping[str, Tensor],
    config: QuantizeConfig,
    limit: int,
    quantize: Callable[[QuantizeConfig], Quantized],
    size: Callable[[Quantized, QuantizeConfig], int],
    report: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """The finest scheme of the family whose model has at most `limit` bytes.

    `quantize` carries a scheme out, `size` encodes the result and counts. Deterministic if they are. The result is
    within the slack below the limit, or it has the finest grids that codes of 8 bits allow. Raises InputError where
    even the coarsest scheme tried is too large.
    """
    if config.steps not in ("deviation", "loss"):
        raise InputError(f"`quantize.fit` scales clips, which `quantize.steps: {config.steps}` does not use")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    reach = {name: _reach(state[name]) for name, rule in resolve(shapes, config).items() if rule.grid}
    codes = sum(math.prod(shapes[name]) for name in reach)
    slack, slope = max(limit * SLACK, LEAST_SLACK), -codes / 8
    aim = limit - slack / 2
    place = _within((aim - predicted_bytes(shapes, config)) / slope)
    best: Fitted | None = None
    trials: list[Trial] = []
    places: list[float] = []
    while len(trials) < TRIALS:
        scheme = scaled(config, shapes, reach, 2.0**place)
        quantized = quantize(scheme)
        trials.append(Trial(_rounded(2.0**place), size(quantized, scheme)))
        places.append(place)
        found = trials[-1].bytes
        report(f"clips x {2.0**place:.4f}: {found:,} bytes of {limit:,}")
        if found <= limit and (best is None or found > best.bytes_model):
            best = Fitted(quantized, scheme, found, trials)
        if limit - slack <= found <= limit or (found <= limit and _finest(scheme, shapes, reach)):
            break
        if len(trials) > 1 and abs(moved := places[-1] - places[-2]) > LEAST_MOVE:
            slope = min((found - trials[-2].bytes) / moved, -codes / 1000)
        place = _within(place + (aim - found) / slope)
        above = max((at for at, trial in zip(places, trials, strict=True) if trial.bytes > limit), default=-math.inf)
        below = min((at for at, trial in zip(places, trials, strict=True) if trial.bytes <= limit), default=math.inf)
        if above < below and not above < place < below and math.isfinite(below - above):
            place = (above + below) / 2  # the secant left the interval that holds the limit
        if place == places[-1]:
            break
    if best is None:
        least = min(trial.bytes for trial in trials)
        raise InputError(f"no clip brings the model to {limit:,} bytes (least: {least:,}): raise `fit.target_bytes`")
    return best


def scaled(
    config: QuantizeConfig, shapes: Mapping[str, tuple[int, ...]], reach: Mapping[str, float], factor: float
) -> QuantizeConfig:
    """The scheme with every clip times `factor`, and other widths where the range asks for them.

    `reach` holds max |w| / std of each matrix.
    """
    common = TensorConfig(name="*", k_times=_rounded(factor))
    exceptions = []
    for name, rule in resolve(shapes, config).items():
        if rule.grid is None or config.steps == "loss":  # whose codes have the width that they need
            continue
        scaled_grid = common.on(rule.grid)
        grid = grid_at(scaled_grid.k_sigma / scaled_grid.clip, reach[name])
        if grid.bits != rule.grid.bits:
            exceptions.append(TensorConfig(name=name, bits=grid.bits, k_sigma=grid.k_sigma))
    return replace(config, tensors=(*config.tensors, common, *exceptions))


def grid_at(step: float, reach: float) -> GridConfig:
    """The narrowest grid with this step that holds `reach`, both in standard deviations; 8 bits never clip below it."""
    step = max(step, reach / WIDEST)
    bits = next(bits for bits in range(2, 9) if bits == 8 or step * GridConfig(bits=bits).clip >= reach)
    return GridConfig(bits=bits, k_sigma=_rounded(step * GridConfig(bits=bits).clip))


def _within(place: float) -> float:
    return min(max(place, -OCTAVES), OCTAVES)


def _finest(config: QuantizeConfig, shapes: Mapping[str, tuple[int, ...]], reach: Mapping[str, float]) -> bool:
    """Whether no grid can become finer without clipping."""
    grids = {name: rule.grid for name, rule in resolve(shapes, config).items() if rule.grid}
    return all(grid.bits == 8 and grid.k_sigma <= reach[name] * 1.001 for name, grid in grids.items())


def _reach(weight: Tensor) -> float:
    """max |w| / std(row), at least `REACH`; a constant row has none."""
    spread = weight.float().std(dim=1, keepdim=True)
    ratio = (weight.float() / spread.clamp_min(1e-12)).abs() * (spread > 0)
    return max(REACH, float(ratio.max()))


def _rounded(value: float) -> float:
    """Six digits: the header carries them."""
    return float(f"{value:.6g}")
