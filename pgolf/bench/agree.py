"""Whether speed changes the mathematics: the losses of one run as configured, of its slower twins, and of other seeds.

    configured   compiled, with the kernels and the products that params.yaml names
    bfloat16     as configured, without products of 8 bits (where those are configured)
    eager        the same seed and batches in eager torch, products in the type of the activations, sums in float32
    seed N       as configured, with other initial weights on the same batches

A twin should be no farther from the run as configured than seeds are from each other. The losses of single steps cross
by chance, so both are taken of means over `EVERY` steps: the spread of seeds is the largest of those less the least.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig
from pgolf.train.run import new_trainer, open_batches
from pgolf.train.schedule import progress, settings

EVERY = 10
"""Steps between the losses that are compared."""


def training_losses(
    model_config: ModelConfig,
    config: TrainConfig,
    vocab_size: int,
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
    """Loss of every step of a run of `config.steps`, nats per token, before its update."""
    trainer, batches = new_trainer(model_config, config, vocab_size, device, dtype), open_batches(config, shards)
    losses = []
    for step in range(config.steps or 0):
        now = settings(config, step, progress(config, step, 0.0))
        losses.append(trainer.backward(batches, now))
        trainer.update(now)
    return torch.stack(losses).tolist()


def plain_twin(config: TrainConfig) -> TrainConfig:
    """The same run in eager torch."""
    return replace(config, compile=False, graphs=False, kernels="plain", matmul="bfloat16")


def ways(config: TrainConfig, steps: int, seeds: int = 2) -> dict[str, TrainConfig]:
    """The runs of that many steps, the one as configured first; `seeds` counts its own."""
    configured = replace(config, steps=steps, seconds=None)
    found = {"configured": configured}
    if configured.matmul != "bfloat16":
        found["bfloat16"] = replace(configured, matmul="bfloat16")
    found["eager"] = plain_twin(configured)
    return found | {
        f"seed {seed}": replace(configured, seed=seed) for seed in range(config.seed + 1, config.seed + seeds)
    }


class Agreement(NamedTuple):
    """How far runs are from the one as configured, nats per token, of the means of every ten steps."""

    spread: list[float]
    """Of the seeds."""
    gaps: dict[str, list[float]]
    """|mean of a twin - mean as configured|."""

    def outside(self, name: str) -> int:
        """How often a twin is farther away than seeds are from each other."""
        return sum(gap > most for gap, most in zip(self.gaps[name], self.spread, strict=True))


def agreement(losses: dict[str, list[float]]) -> Agreement:
    """Of runs by name, as `ways` names them; steps behind the last whole ten are left out."""
    steps = len(losses["configured"]) // EVERY * EVERY
    means = {name: np.reshape(values[:steps], (-1, EVERY)).mean(1) for name, values in losses.items()}
    first = means["configured"]
    seeds = np.stack([first, *(mean for name, mean in means.items() if name.startswith("seed "))])
    twins = {name: mean for name, mean in means.items() if name in ("bfloat16", "eager")}
    return Agreement(np.ptp(seeds, 0).tolist(), {name: np.abs(mean - first).tolist() for name, mean in twins.items()})


def save(losses: dict[str, list[float]], folder: Path) -> None:
    """agreement.json and agreement.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agreement.json").write_text(json.dumps(losses) + "\n", "utf-8")
    from pgolf.report import plots  # last: the losses stay also where nothing can be drawn
    from pgolf.report.training import agreement as drawn

    found = agreement(losses)
    plots.save(drawn(losses, found.gaps, found.spread, EVERY), folder / "agreement.png")
