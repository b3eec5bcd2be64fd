"""The training loop: one budget, one schedule, Muon and AdamW, averages of the weights.

Order of a step (PR 1493): settings from the progress; gradients of the micro-batches; clip the global norm; Muon;
AdamW (either may come first: they have different parameters); averages. The clock is handed in, so that a resumed run
goes on where it stopped and compilation stays outside.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pgolf import ranks
from pgolf.data.batches import Batch
from pgolf.errors import InputError
from pgolf.train.schedule import micro_batches_before, progress, settings
from pgolf.train.trainer import Trainer

if TYPE_CHECKING:
    from pgolf.train.recorder import Snapshot
    from pgolf.train.trace import Observe


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
    resume: "Snapshot | None" = None,
    report: Callable[[Report], None] = lambda _: None,
    save: "Callable[[Snapshot], None] | None" = None,
    finish: Callable[[int], None] = lambda _: None,
    observe: "Observe | None" = None,
    record: bool = True,
) -> Trained:
    """Train until the budget is spent and put the averaged weights into the model.

    `elapsed` returns the seconds of training so far, the same to all processes, and is the only clock: learning rate,
    recurrence, the end and `save` follow it. The first process alone calls `save` and `report`. `save` is called every
    `checkpoint_seconds` with a state from which `resume` continues to the same result. `finish` runs after the last
    step, with the number of micro-batches taken, before the average is applied. `observe` looks at the model for the
    trace. Without `record` there is no trace, and neither `resume` nor `save`.
    """
    config, model = trainer.config, trainer.model
    step, loss, recorder = 0, torch.zeros(()), None
    if record:
        from pgolf.train.recorder import Recorder

        recorder = Recorder(trainer, elapsed(), resume, save, observe)
        step = recorder.step
    taken = micro_batches_before(config, step)
    while (fraction := progress(config, step, seconds := elapsed())) < 1:
        if recorder is not None:
            recorder.save_in_time(step, seconds)
        now = settings(config, step, fraction)
        loss = trainer.backward(batches, now)
        traced = step % config.trace_every == 0
        if traced and recorder is not None:
            recorder.gradients()
        trainer.update(now)
        step, taken = step + 1, taken + now.micro_batches
        trainer.snapshot(step, now)
        if traced:  # the only place where the host waits for the device
            value = loss.item()
            if recorder is not None:
                recorder.trace.entry(step, elapsed(), now.multiplier, loss)
            line = Report(step, fraction, elapsed(), taken * config.micro_tokens, value)
            if ranks.rank() == 0:
                report(line)
    finish(taken)
    model.looped = True
    trainer.finish(batches)
    check_finite(trainer, loss, step)
    trace = {} if recorder is None else recorder.trace.tensors()
    return Trained(step, taken * config.micro_tokens, elapsed(), loss.item(), trace)


def check_finite(trainer: Trainer, loss: Tensor, step: int) -> None:
    """InputError where the run diverged."""
    if not all(torch.isfinite(tensor).all() for tensor in (loss, *trainer.model.parameters())):
        raise InputError(f"training diverged (loss {loss.item()} at step {step}): lower the learning rates in `train`")
