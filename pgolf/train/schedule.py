"""What the training loop reads off its progress f, the elapsed fraction of the budget.

lr multiplier   1 for f < 1 - w, then max((1 - f) / w, floor)            (linear warm-down, PR 1285)
momentum        start + (mu - start) min(step / warmup, 1)
recurrence      on once f >= loop_at                                     (PR 1493)
"""

from pgolf.train.config import MuonConfig, TrainConfig


def progress(config: TrainConfig, step: int, seconds: float) -> float:
    """Elapsed fraction of the budget, 0 to 1, by steps or by wall-clock less the reserve."""
    if config.steps is not None:
        return min(step / config.steps, 1.0)
    assert config.seconds is not None
    return min(seconds / (config.seconds - config.reserve_seconds), 1.0)


def lr_multiplier(config: TrainConfig, f: float) -> float:
    """Factor on every learning rate at progress f."""
    if f < 1 - config.warmdown or config.warmdown == 0:
        return 1.0
    return max((1 - f) / config.warmdown, config.lr_floor)


def muon_momentum(config: MuonConfig, step: int) -> float:
    """Momentum of Muon at an optimizer step counted from 0."""
    rise = min(step / config.momentum_warmup, 1.0) if config.momentum_warmup else 1.0
    return config.momentum_start + (config.momentum - config.momentum_start) * rise
