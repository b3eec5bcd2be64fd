"""One training run: model, data order, warm-up off the clock, training on it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pgolf.budget import Clock
from pgolf.data.batches import Batch
from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.device import synchronize
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.config import TrainConfig
from pgolf.train.loop import Report, Snapshot, Trained, Trainer, train


class BatchStream(Protocol):
    """Micro-batches without end, in a fixed order."""

    def __iter__(self) -> "BatchStream":
        """Itself."""
        ...

    def __next__(self) -> Batch:
        """The next micro-batch."""
        ...

    def skip(self, batches: int) -> None:
        """Pass over micro-batches that an interrupted run has used."""
        ...


class Run(NamedTuple):
    """A finished run."""

    model: GPT
    """Averaged weights, recurrence on."""
    trained: Trained
    compile_seconds: float
    """Compilation and warm-up, outside the training clock."""


def open_batches(config: TrainConfig, shards: Sequence[Path]) -> BatchStream:
    """The micro-batches of a run, in their fixed order."""
    if config.batches == "packed":
        from pgolf.data.packed_documents import PackedDocuments

        return PackedDocuments(shards, config.micro_tokens, config.seq_len)
    return ShuffledRows(shards, config.micro_tokens // config.seq_len, config.seq_len)


def build_model(config: ModelConfig, vocab_size: int, seed: int, device: torch.device, dtype: torch.dtype) -> GPT:
    """A freshly initialised model; weights are drawn on the CPU, so that they do not depend on the device."""
    torch.manual_seed(seed)
    return GPT(config, vocab_size, dtype).to(device)


def run_training(
    model_config: ModelConfig,
    config: TrainConfig,
    vocab_size: int,
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    resume: Snapshot | None = None,
    report: Callable[[Report], None] = lambda _: None,
    save: Callable[[Snapshot], None] | None = None,
) -> Run:
    """Train from scratch or from `resume`; raises InputError when the data is too small for a batch."""
    model = build_model(model_config, vocab_size, config.seed, device, dtype)
    batches = open_batches(config, shards)
    model.prepare(config.seq_len if config.batches == "rows" else config.micro_tokens)
    trainer = Trainer(model, config)
    clock = Clock({"train": resume.seconds} if resume else None)
    with clock.phase("compile"):
        if device.type == "cuda":
            trainer.warm_up(open_batches(config, shards))
            synchronize(device)
        if resume:
            batches.skip(resume.step * config.micro_batches)
    with clock.phase("train"):
        trained = train(trainer, batches, lambda: clock.seconds("train"), resume=resume, report=report, save=save)
        synchronize(device)
    return Run(model, trained._replace(seconds=clock.seconds("train")), clock.seconds("compile"))
