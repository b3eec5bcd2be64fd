"""Training speed on 1, 2, 4, ... processes, in one start of the largest number and with one compilation.

    factor = tokens/s of W ranks / tokens/s of one, on the batch of params.yaml (strong scaling) and on W of them (weak)

The first W processes work together while the others wait on the host, for a word of the first one. Every measurement
reads the same data from its beginning, in the order of training.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.profiler import ProfilerActivity, profile

from pgolf import ranks
from pgolf.bench.overlap import Communication, collectives, communication
from pgolf.bench.train import PROFILED, WARM_UP, step, time_steps
from pgolf.data.batches import Batch
from pgolf.device import synchronize
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig
from pgolf.train.exchange import Exchange
from pgolf.train.groups import split_parameters
from pgolf.train.muon import Muon
from pgolf.train.run import ahead, new_trainer, open_batches
from pgolf.train.schedule import ALL_RUNS, Settings, settings
from pgolf.train.trainer import Trainer


class Meeting(NamedTuple):
    """Processes that have been started together, before they work together."""

    store: Store
    rank: int
    size: int

    def reach(self, place: str) -> None:
        """Go on when all are here, without a GPU that waits."""
        self.store.set(f"{place} {self.rank}", "")
        self.store.wait([f"{place} {rank}" for rank in range(self.size)])

    def leave(self) -> None:
        """Have done; the first leaves last, since it holds the store."""
        self.store.set(f"left {self.rank}", "")
        if self.rank == 0:
            self.store.wait([f"left {rank}" for rank in range(self.size)])


class Speed(NamedTuple):
    """One phase of training on so many ranks."""

    ranks: int
    batch_tokens: int
    """Of a step of all ranks."""
    looped: bool
    """Whether recurrence was on."""
    milliseconds: float
    """Of a step."""
    tokens_per_second: float
    communication: Communication | None
    """None where the profiles do not tell."""


def meet() -> Meeting:
    """The processes that the environment of torchrun speaks of, each with a GPU of its own where there are GPUs."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Meeting(*next(iter(rendezvous("env://"))))


def worlds(count: int) -> list[int]:
    """Numbers of processes to measure: 1, 2, 4, ... and all."""
    return sorted({2**n for n in range(count.bit_length())} | {count})


def batches_of(micro_batches: int, world: int) -> list[int]:
    """Batches of a step to measure, in those of params.yaml: one, where it can be shared out evenly, and one a rank."""
    return [batches for batches in sorted({1, world}) if batches * micro_batches % world == 0]


def measure_ranks(
    model_config: ModelConfig,
    config: TrainConfig,
    vocab_size: int,
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    meeting: Meeting,
    say: Callable[[str], None],
) -> list[Speed]:
    """Train a fresh model for `steps` counted steps of every kind; the first rank alone has all results."""
    trainer = new_trainer(model_config, config, vocab_size, device, dtype)
    first = settings(config, 0, 0.0)._replace(seq_len=config.seq_len)
    phases = [first._replace(runs=runs) for runs in ((1, ALL_RUNS) if model_config.loop_runs > 1 else (1,))]
    read = (WARM_UP + steps + PROFILED) * config.micro_batches * meeting.size
    kinds = different(itertools.islice(open_batches(config, shards), read))
    started = time.perf_counter()
    for now in phases:
        say(f"compiling, recurrence {on(now)}, {len(kinds)} kinds of batch")
        warm_up(trainer, kinds, now)
        synchronize(device)
        say(f"warm after {time.perf_counter() - started:.1f} s")
    found: list[Speed] = []
    for world in worlds(meeting.size):
        meeting.reach(f"before {world}")
        if meeting.rank < world:
            found += _together(trainer, shards, phases, world, steps, meeting, say)
    return found


def on(now: Settings) -> str:
    """Whether recurrence is, in words."""
    return "off" if now.runs == 1 else "on"


def different(batches: Iterator[Batch]) -> list[Batch]:
    """One batch of every number of boundaries that occurs: each is a graph of its own."""
    found: dict[int, Batch] = {}
    for batch in batches:
        found.setdefault(0 if batch.cu_seqlens is None else len(batch.cu_seqlens), batch)
    return list(found.values())


def warm_up(trainer: Trainer, kinds: Sequence[Batch], now: Settings) -> None:
    """Run every kind of pass in one process, and throw the gradients away."""
    for batch in kinds:
        for _ in range(1 + trainer.graphs):  # the second time it is captured
            trainer.backward(itertools.repeat(batch), now._replace(micro_batches=1))
            trainer.model.zero_grad()


def share_out(trainer: Trainer) -> None:
    """Muon from its start, for the processes that there are now, and what they exchange."""
    config = trainer.config
    matrices = split_parameters(trainer.model, config.muon.also)["muon"]
    trainer.muon, trainer.exchange = Muon(matrices, config.muon, trainer.muon.dtype, config.late), None
    if ranks.world() > 1:
        others = [parameter for group in trainer.adam.param_groups for parameter in group["params"]]
        trainer.exchange = Exchange(trainer.muon, others)


def _together(
    trainer: Trainer,
    shards: Sequence[Path],
    phases: Sequence[Settings],
    world: int,
    steps: int,
    meeting: Meeting,
    say: Callable[[str], None],
) -> Iterator[Speed]:
    """What the first `world` processes measure, being the only ones meanwhile."""
    config, device = trainer.config, trainer.device
    if world > 1:
        store = PrefixStore(f"ranks {world}", meeting.store)
        kinds = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(kinds, store=store, rank=meeting.rank, world_size=world)
    ranks.equal_(parameter.detach() for parameter in trainer.model.parameters())
    share_out(trainer)
    for batches in batches_of(config.micro_batches, world):
        micro_batches = batches * config.micro_batches
        for now in (phase._replace(micro_batches=micro_batches) for phase in phases):
            with ahead(open_batches(config, shards), config, device) as stream:
                seconds, _ = time_steps(trainer, stream, now, steps)
                talk = Communication(0, 0, 0) if world == 1 else _communication(trainer, stream, now)
            tokens = micro_batches * config.micro_tokens
            yield Speed(world, tokens, now.runs != 1, 1e3 * seconds, tokens / seconds, talk)
            say(f"{world} at work, {tokens:,} tokens, recurrence {on(now)}: {1e3 * seconds:.1f} ms")
    if world > 1:
        dist.destroy_process_group()


def _communication(trainer: Trainer, batches: Iterator[Batch], now: Settings) -> Communication | None:
    cuda = trainer.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            step(trainer, batches, now)
        synchronize(trainer.device)
    return communication(ranks.collect(collectives(profiler.events() or (), trainer.device.type)), PROFILED)
