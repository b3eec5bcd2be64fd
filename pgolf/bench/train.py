"""What a training step costs: compilation, tokens per second without and with recurrence, the share of what the matrix
units deliver, memory, and the kernels it goes to.

    MFU = 3 forward FLOPs per token x tokens/s / the rate of a large matrix product, measured in the same process

The keys that attention meets are counted on the batch itself: c = sum over segments of n (n + 1) / 2, over tokens.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from pgolf import ranks
from pgolf.bench.attention import milliseconds
from pgolf.data.batches import Batch
from pgolf.device import synchronize
from pgolf.model.config import ModelConfig
from pgolf.model.flops import forward_flops
from pgolf.train.config import TrainConfig
from pgolf.train.run import ahead, new_trainer, open_batches
from pgolf.train.schedule import ALL_RUNS, Settings, settings
from pgolf.train.trainer import Trainer

WARM_UP = 3
"""Steps before the clock starts."""
PROFILED = 2
"""Steps that the table of kernels is of."""


class Speed(NamedTuple):
    """One phase of training."""

    looped: bool
    """Whether recurrence was on."""
    milliseconds: float
    """Of one optimizer step."""
    tokens_per_second: float
    flops: float
    """Model FLOPs per second."""
    peak_bytes: int
    """Most memory that tensors took; 0 on a CPU."""


class Kernel(NamedTuple):
    """What one kernel, or on a CPU one operation, took of a step."""

    name: str
    calls: float
    milliseconds: float
    share: float


class Measured(NamedTuple):
    """All figures of one way to run the step."""

    compile_seconds: float
    phases: list[Speed]
    kernels: list[Kernel]
    """Of the step with recurrence, by time."""


def measure_training(
    model_config: ModelConfig,
    config: TrainConfig,
    vocab_size: int,
    shards: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
) -> Measured:
    """Train a fresh model for `steps` counted steps in each phase; compiled if `config.compile` and the device can."""
    started = time.perf_counter()
    trainer = new_trainer(model_config, config, vocab_size, device, dtype)
    trainer.warm_up(open_batches(config, shards))
    synchronize(device)
    compiled = time.perf_counter() - started
    phases = []
    context = attended(next(open_batches(config, shards)))
    with ahead(open_batches(config, shards), config, device) as batches:
        for looped in (False, True) if model_config.loop_runs > 1 else (False,):
            now = settings(config, 0, 0.0)._replace(runs=ALL_RUNS if looped else 1)
            seconds, peak = time_steps(trainer, batches, now, steps)
            rate = now.micro_batches * config.micro_tokens / seconds
            flops = 3 * forward_flops(model_config, vocab_size, context, looped) * rate
            phases.append(Speed(looped, 1e3 * seconds, rate, flops, peak))
        return Measured(compiled, phases, _kernels(trainer, batches, now))


def step(trainer: Trainer, batches: Iterator[Batch], now: Settings) -> None:
    """One of training, with the word about the clock that comes before it."""
    ranks.decide(0.0)
    trainer.backward(batches, now)
    trainer.update(now)


def time_steps(trainer: Trainer, batches: Iterator[Batch], now: Settings, steps: int) -> tuple[float, int]:
    """Seconds of a step and the peak of memory, after a few steps that do not count."""
    cuda = trainer.device.type == "cuda"
    for _ in range(WARM_UP):
        step(trainer, batches, now)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    synchronize(trainer.device)
    started = time.perf_counter()
    for _ in range(steps):
        step(trainer, batches, now)
    synchronize(trainer.device)
    peak = torch.cuda.max_memory_reserved if trainer.graphs else torch.cuda.max_memory_allocated  # graphs keep theirs
    return (time.perf_counter() - started) / steps, peak() if cuda else 0


def _kernels(trainer: Trainer, batches: Iterator[Batch], now: Settings) -> list[Kernel]:
    cuda = trainer.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            step(trainer, batches, now)
        synchronize(trainer.device)
    found = [
        (event.key, event.count / PROFILED, (event.self_device_time_total if cuda else event.self_cpu_time_total))
        for event in profiler.key_averages()
    ]
    total = sum(microseconds for *_, microseconds in found)
    rows = [Kernel(name, calls, t / PROFILED / 1e3, t / total) for name, calls, t in found if t > 0]
    return sorted(rows, key=lambda row: -row.milliseconds)


def attended(batch: Batch) -> float:
    """Keys that a token of the batch attends to on average, itself included."""
    if batch.cu_seqlens is None:
        return (batch.inputs.size(1) + 1) / 2
    lengths = batch.cu_seqlens.diff().double()
    return float((lengths * (lengths + 1) / 2).sum() / batch.inputs.numel())


def matmul_rate(device: torch.device) -> float:
    """FLOPs per second of a large product of random matrices: n = 8192 in bfloat16 on CUDA, 1024 in float32 else."""
    cuda = device.type == "cuda"
    n, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    if cuda:
        return 2 * n**3 / (1e-3 * milliseconds(lambda: a @ b, 20))
    a @ b
    started = time.perf_counter()
    a @ b
    return 2 * n**3 / (time.perf_counter() - started)
