"""What one optimizer step does, as a pure function of its number t and the progress f, the elapsed fraction of the
budget (by steps, or by training wall-clock).

warm-down of the learning rate, by `train.schedule` (w = warmdown, f0 = 1 - w, N = warmdown_steps):

    linear       1 for f < f0, then (1 - f) / w                               PR 1285, 1493, 1855
    sqrt         1 for f < f0, then 1 - sqrt((f - f0) / w)                    PR 1432
    cosine       1 for f < f0, then (1 + cos(pi (f - f0) / w)) / 2            PR 243
    d2z          1 - f                                                        PR 401's author, lr_warmup_steps 200
    iterations   min(1, remaining / (N s)), s = elapsed / t                   PR 315, 414, 549, 635

and never below lr_floor. In `iterations`, s is the step time measured so far, so remaining / (N s) =
(1 - f) t / (N f): by steps that is the last N steps, by wall-clock it is an estimate. The trap: slow first steps
(cold caches, late compilation) raise s and start the warm-down early, and where N s exceeds the budget from the
start, the whole run is decay.

A warm-up replaces the warm-down while it lasts: min(f / lr_warmup, t / lr_warmup_steps). The first step is then 0.

momentum        start + (mu - start) min(t / warmup, 1)
weight decay    1 for f < taper_from, then linear to taper_to at f = 1        PR 1729
recurrence      on once f >= loop_at                                          PR 1493
                one pass more then and at each of loop_further_at             PR 1412
row length      S/8, S/4, S/2 in the thirds of the ramp, then S               PR 401's author
batch           linear in t from curriculum.batch_tokens, in whole micro-batches
"""

import math
from typing import NamedTuple

from pgolf.train.config import MuonConfig, TrainConfig

ALL_RUNS = 2**31


class Settings(NamedTuple):
    """What a step runs with."""

    multiplier: float
    """Factor on every learning rate."""
    momentum: float
    """Of Muon."""
    decay: float
    """Factor on Muon's weight decay."""
    runs: int
    """How often the recurrent segment runs, if the model lets it."""
    seq_len: int
    """Longest context in tokens."""
    micro_batches: int
    """Forward passes whose gradients are averaged."""
    quantized: bool
    """Late quantization-aware training."""


def settings(config: TrainConfig, step: int, f: float) -> Settings:
    """Everything that step `step` (from 0) at progress f depends on."""
    qat = config.qat
    return Settings(
        multiplier=lr_multiplier(config, f, step),
        momentum=muon_momentum(config.muon, step),
        decay=decay_multiplier(config.muon, f),
        runs=recurrent_runs(config, f),
        seq_len=row_length(config, f),
        micro_batches=micro_batches(config, step),
        quantized=warmdown(config, f, step) < qat.below or f > 1 - qat.last,
    )


def progress(config: TrainConfig, step: int, seconds: float) -> float:
    """Elapsed fraction of the budget, 0 to 1, by steps or by wall-clock less the reserve.

    By steps, a step with recurrence may count as `loop_cost` of one without, so that recurrence is switched on at the
    step at which a clock would do it: with N steps in all, after loop_at T of T = N loop_cost / (1 + loop_at
    (loop_cost - 1)) (PR 1855: step 2178 of 4945, 96.3 ms before and 140.9 ms after it).
    """
    if config.steps is not None:
        if config.loop_cost == 1 or step >= config.steps:
            return min(step / config.steps, 1.0)
        total = config.steps * config.loop_cost / (1 + config.loop_at * (config.loop_cost - 1))
        return max(step / total, 1 - (config.steps - step) * config.loop_cost / total)
    assert config.seconds is not None
    return min(seconds / (config.seconds - config.reserve_seconds), 1.0)


def warmdown(config: TrainConfig, f: float, step: int) -> float:
    """The falling part of the multiplier, without warm-up."""
    if config.schedule != "linear":
        from pgolf.train.warmdowns import other_warmdown

        return max(other_warmdown(config, f, step), config.lr_floor)
    return max(min((1 - f) / config.warmdown, 1.0) if config.warmdown else 1.0, config.lr_floor)


def lr_multiplier(config: TrainConfig, f: float, step: int) -> float:
    """Factor on every learning rate at progress f and optimizer step `step`."""
    rise = 1.0
    if config.lr_warmup:
        rise = min(rise, f / config.lr_warmup)
    if config.lr_warmup_steps:
        rise = min(rise, step / config.lr_warmup_steps)
    return rise if rise < 1 else warmdown(config, f, step)


def muon_momentum(config: MuonConfig, step: int) -> float:
    """Momentum of Muon at an optimizer step counted from 0."""
    rise = min(step / config.momentum_warmup, 1.0) if config.momentum_warmup else 1.0
    return config.momentum_start + (config.momentum - config.momentum_start) * rise


def decay_multiplier(config: MuonConfig, f: float) -> float:
    """Factor on Muon's weight decay at progress f."""
    if f < config.taper_from or config.taper_from == 1:
        return 1.0
    return 1 + (config.taper_to - 1) * (f - config.taper_from) / (1 - config.taper_from)


def recurrent_runs(config: TrainConfig, f: float) -> int:
    """Passes over the recurrent segment at progress f; ALL_RUNS where nothing but the model limits them."""
    if f < config.loop_at:
        return 1
    return 2 + sum(f >= at for at in config.loop_further_at) if config.loop_further_at else ALL_RUNS


def row_length(config: TrainConfig, f: float) -> int:
    """Tokens of a row at progress f."""
    ramp = config.curriculum.seq_ramp
    if f >= ramp:
        return config.seq_len
    within = f / ramp
    return config.seq_len // (8 if within < 0.33 else 4 if within < 0.67 else 2)


def micro_batches(config: TrainConfig, step: int) -> int:
    """Forward passes of an optimizer step counted from 0."""
    first = config.curriculum.batch_tokens
    if first is None:
        return config.micro_batches
    tokens = first + (config.batch_tokens - first) * min(step / config.curriculum.batch_steps, 1.0)
    return max(1, round(tokens / config.micro_tokens))


def largest_world(config: TrainConfig) -> int:
    """The most processes that can share out every step evenly; any number of them must divide it."""
    steps = range(config.curriculum.batch_steps + 1 if config.curriculum.batch_tokens else 1)
    return 1 if config.finish.enabled else math.gcd(*(micro_batches(config, step) for step in steps))


def micro_batches_before(config: TrainConfig, step: int) -> int:
    """Micro-batches that all steps before `step` have taken: where a resumed run goes on reading."""
    return sum(micro_batches(config, earlier) for earlier in range(step))
