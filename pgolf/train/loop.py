"""The training loop: one budget, one schedule, Muon and AdamW, averages of the weights.

Order of a step (PR 1493): settings from the progress; gradients of the micro-batches; clip the global norm; AdamW;
Muon; averages. The clock is handed in, so that a resumed run goes on where it stopped and compilation stays outside.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.train.schedule import micro_batches_before, progress, settings
from pgolf.train.trace import Trace
from pgolf.train.trainer import Trainer


class Snapshot(NamedTuple):
    """Everything a resumed run needs; the loader is fast-forwarded by the caller."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]


class Report(NamedTuple):
    """One line of progress."""

    step: int
    fraction: float
    seconds: float
    tokens: int
    loss: float


class Trained(NamedTuple):
    """What training leaves behind; the averaged weights are in the model."""

    steps: int
    tokens: int
    """Tokens trained on, by the steps of the budget."""
    seconds: float
    loss: float
    trace: dict[str, Tensor]


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    elapsed: Callable[[], float],
    *,
    resume: Snapshot | None = None,
    report: Callable[[Report], None] = lambda _: None,
    save: Callable[[Snapshot], None] | None = None,
    finish: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Train until the budget is spent and put the averaged weights into the model.

    `elapsed` returns the seconds of training so far and is the only clock. `save` is called every
    `checkpoint_seconds` with a state from which `resume` continues to the same result. `finish` runs after the last
    step, with the number of micro-batches taken, before the average is applied.
    """
    config, model = trainer.config, trainer.model
    step, saved_at, loss = 0, elapsed(), torch.zeros(())
    earlier: dict[str, Tensor] = {}
    if resume is not None:
        step = resume.step
        trainer.restore({name: tensor for name, tensor in resume.tensors.items() if not name.startswith("trace.")})
        earlier = {n.removeprefix("trace."): t for n, t in resume.tensors.items() if n.startswith("trace.")}
    trace, taken = Trace(model, earlier), micro_batches_before(config, step)
    while (fraction := progress(config, step, seconds := elapsed())) < 1:
        if save is not None and config.checkpoint_seconds and seconds - saved_at >= config.checkpoint_seconds:
            tensors = trainer.state() | {f"trace.{name}": tensor for name, tensor in trace.tensors().items()}
            save(Snapshot(step, seconds, tensors))
            saved_at = seconds
        now = settings(config, step, fraction)
        loss = trainer.backward(batches, now)
        traced = step % config.trace_every == 0
        if traced:
            trace.gradients()
        trainer.update(now)
        step, taken = step + 1, taken + now.micro_batches
        trainer.snapshot(step, now)
        if traced:  # the only place where the host waits for the device
            value = loss.item()
            trace.entry(step, elapsed(), now.multiplier, loss)
            report(Report(step, fraction, elapsed(), taken * config.micro_tokens, value))
    finish(taken)
    model.looped = True
    trainer.finish(batches)
    check_finite(trainer, loss, step)
    return Trained(step, taken * config.micro_tokens, elapsed(), loss.item(), trace.tensors())


def check_finite(trainer: Trainer, loss: Tensor, step: int) -> None:
    """InputError where the run diverged."""
    if not all(torch.isfinite(tensor).all() for tensor in (loss, *trainer.model.parameters())):
        raise InputError(f"training diverged (loss {loss.item()} at step {step}): lower the learning rates in `train`")
