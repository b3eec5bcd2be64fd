"""Shapes of the learning rate's warm-down other than the straight one, by `train.schedule`: `pgolf.train.schedule` has
their formulas.
"""

import math

from pgolf.train.config import TrainConfig


def other_warmdown(config: TrainConfig, f: float, step: int) -> float:
    """The factor at progress f and optimizer step `step`, above `lr_floor` or not."""
    if config.schedule == "d2z":
        return 1 - f
    if config.schedule == "iterations":
        wanted = config.warmdown_steps * f
        return min(1.0, (1 - f) * step / wanted) if wanted and step else 1.0
    left = min((1 - f) / config.warmdown, 1.0) if config.warmdown else 1.0
    return 1 - math.sqrt(1 - left) if config.schedule == "sqrt" else (1 - math.cos(math.pi * left)) / 2
