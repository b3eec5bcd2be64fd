"""One training run: model, data order, warm-up off the clock, training on it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pgolf import ranks
from pgolf.budget import Clock
from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.data.streams import BatchStream, Dealt, InTurn
from pgolf.device import synchronize
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.config import TrainConfig
from pgolf.train.groups import split_parameters
from pgolf.train.loop import Report, Trained, train
from pgolf.train.schedule import largest_world, micro_batches_before
from pgolf.train.trainer import Trainer

if TYPE_CHECKING:
    from pgolf.train.recorder import Snapshot
    from pgolf.train.trace import Observe


class Run(NamedTuple):
    """A finished run."""

    model: GPT
    """Averaged weights, recurrence on, all in float32."""
    trained: Trained
    compile_seconds: float
    """Making the model, compilation and warm-up, outside the training clock."""
    averages: dict[str, Tensor]
    """The averages of `train.ema_candidates`, float32, as `decay/parameter`."""


def open_batches(config: TrainConfig, shards: Sequence[Path]) -> BatchStream:
    """The micro-batches of this process; dealt to all in turn, they are the same for any number of processes.

    `train.ranks` is the number of ranks whose order is followed: micro-batch i is the next of rank i mod `ranks`.
    """
    streams = [open_rank(config, shards, rank, config.ranks) for rank in range(config.ranks)]
    stream = streams[0] if len(streams) == 1 else InTurn(streams)
    return stream if ranks.world() == 1 else Dealt(stream, ranks.rank(), ranks.world())


def open_rank(config: TrainConfig, shards: Sequence[Path], rank: int, world: int) -> BatchStream:
    """The micro-batches that rank `rank` of `world` would read by itself."""
    if config.batches == "packed":
        from pgolf.data.packed_documents import PackedDocuments

        return PackedDocuments(shards, config.micro_tokens, config.seq_len, rank, world)
    rows = config.micro_tokens // config.seq_len
    if config.batches == "sequential":
        from pgolf.data.sequential_rows import SequentialRows

        return SequentialRows(shards, rows, config.seq_len, rank, world)
    if config.batches == "coprime":
        from pgolf.data.coprime_rows import CoprimeRows

        return CoprimeRows(shards, rows, config.seq_len, rank, world)
    return ShuffledRows(shards, rows, config.seq_len, rank, world)


def build_model(config: ModelConfig, vocab_size: int, seed: int, device: torch.device, dtype: torch.dtype) -> GPT:
    """A freshly initialised model; weights are drawn on the CPU, so that they do not depend on the device."""
    torch.manual_seed(seed)
    return GPT(config, vocab_size, dtype).to(device)


def cast_embedding(model: GPT, dtype: torch.dtype) -> None:
    """Keep the embedding in `dtype`: its gradient and AdamW's moments follow (PR 1530 to 1855: bfloat16)."""
    for parameter in split_parameters(model)["embed"].values():
        parameter.data = parameter.data.to(dtype)


def new_trainer(
    model_config: ModelConfig, config: TrainConfig, vocab_size: int, device: torch.device, dtype: torch.dtype
) -> Trainer:
    """A fresh model and its training state; InputError where the processes cannot share out every step evenly."""
    if (most := largest_world(config)) % ranks.world():
        raise InputError(
            f"{ranks.world()} processes cannot share out every step evenly: start a number that divides {most}, the "
            "micro-batches of a step (`batch_tokens` / `micro_tokens`; 1 with `finish`)"
        )
    model = build_model(model_config, vocab_size, config.seed, device, dtype)
    cast_embedding(model, torch.bfloat16 if config.embed_dtype == "bfloat16" else torch.float32)
    ranks.equal_(parameter.detach() for parameter in model.parameters())  # processors of other kinds round otherwise
    model.prepare(config.micro_tokens if config.batches == "packed" else config.seq_len)
    return Trainer(model, config)


def run_training(
    model_config: ModelConfig,
    config: TrainConfig,
    vocab_size: int,
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    resume: "Snapshot | None" = None,
    report: Callable[[Report], None] = lambda _: None,
    save: "Callable[[Snapshot], None] | None" = None,
    observe: "Observe | None" = None,
    record: bool = True,
) -> Run:
    """Train from scratch or from `resume`, with what `train` takes; InputError when the data is too small for a batch.

    Several processes train one model together: they get the same arguments and have the same result, whose progress
    the first alone reports and saves.
    """
    clock = Clock({"train": resume.seconds} if resume else None)

    def reopen(skipped: int) -> BatchStream:
        stream = open_batches(config, shards)
        stream.skip(skipped)
        return stream

    def finish(taken: int) -> None:
        if config.finish.enabled:
            from pgolf.train.finishing import run_finish

            run_finish(trainer, taken, reopen)

    with clock.phase("compile"):  # a model behind kernels compiles most of them when it is made
        trainer = new_trainer(model_config, config, vocab_size, device, dtype)
        if device.type == "cuda":
            trainer.warm_up(open_batches(config, shards))
            synchronize(device)
        batches = reopen(micro_batches_before(config, resume.step) // ranks.world() if resume else 0)
    with clock.phase("train"), ahead(batches, config, device) as stream:
        trained = train(
            trainer, stream, lambda: ranks.decide(clock.seconds("train")), resume=resume, report=report, save=save,
            finish=finish, observe=observe, record=record,
        )  # fmt: skip
        synchronize(device)
    cast_embedding(trainer.model, torch.float32)
    trained = trained._replace(seconds=clock.seconds("train"))
    return Run(trainer.model, trained, clock.seconds("compile"), trainer.candidate_averages())


@contextlib.contextmanager
def ahead(batches: BatchStream, config: TrainConfig, device: torch.device) -> Iterator[BatchStream]:
    """On CUDA, the same batches read ahead by a thread; it ends with the block."""
    if device.type != "cuda" or not config.prefetch:
        yield batches
        return
    from pgolf.data.prefetch import Prefetch

    with contextlib.closing(Prefetch(batches, config.prefetch, pin=True)) as stream:
        yield stream
