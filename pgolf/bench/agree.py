"""Whether speed changes the mathematics: the losses of one run as configured, of its eager twin, and of another seed.

    configured   compiled, with the kernels and the products that params.yaml names
    plain        the same seed and batches in eager torch, products in the type of the activations
    other seed   as configured, with other initial weights on the same batches

The first two should differ by less than the first and the last, which is the spread of two seeds.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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


def ways(config: TrainConfig, steps: int) -> dict[str, TrainConfig]:
    """The three runs of that many steps."""
    configured = replace(config, steps=steps, seconds=None)
    return {
        "configured": configured,
        "plain": plain_twin(configured),
        "other seed": replace(configured, seed=config.seed + 1),
    }


def differences(losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """|loss - that as configured| at every tenth step, of the other two."""
    first = losses["configured"][::EVERY]
    return {
        name: [abs(a - b) for a, b in zip(first, losses[name][::EVERY], strict=True)]
        for name in ("plain", "other seed")
    }


def save(losses: dict[str, list[float]], folder: Path) -> None:
    """agreement.json and agreement.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agreement.json").write_text(json.dumps(losses) + "\n", "utf-8")
    from pgolf.report import plots  # last: the losses stay also where nothing can be drawn
    from pgolf.report.training import agreement

    plots.save(agreement(losses, differences(losses), EVERY), folder / "agreement.png")
