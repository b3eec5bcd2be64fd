"""The training loop: one budget, one schedule, Muon and AdamW, an average of the weights.

Order of a step (PR 1493): learning rate and recurrence from the progress; gradients of
the micro-batches; clip the global norm; AdamW; Muon; average. The clock is handed in, so that a resumed run goes on
where it stopped and compilation stays outside.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.data.batches import BUCKET, Batch
from pgolf.errors import InputError
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT
from pgolf.train.averaging import EMA
from pgolf.train.config import AdamConfig, TrainConfig
from pgolf.train.groups import split_parameters
from pgolf.train.muon import Muon
from pgolf.train.schedule import lr_multiplier, muon_momentum, progress
from pgolf.train.trace import Trace


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
    seconds: float
    loss: float
    trace: dict[str, Tensor]


class Trainer:
    """Model, optimizers and average, advanced one step at a time."""

    def __init__(self, model: GPT, config: TrainConfig) -> None:
        self.model, self.config = model, config
        device = model.tok_emb.weight.device
        groups = split_parameters(model)
        self.muon = Muon(groups["muon"], config.muon, torch.bfloat16 if device.type == "cuda" else torch.float32)
        self.scheduled: list[tuple[str, AdamConfig]] = [("embed", config.embed), ("scalar", config.scalar)]
        self.adam = torch.optim.AdamW(
            [
                {"params": list(groups[name].values()), "lr": group.lr, "weight_decay": group.weight_decay}
                for name, group in self.scheduled
            ],
            betas=(config.beta1, config.beta2),
            eps=1e-8,
            fused=True,
        )
        self.adam_names = [name for group, _ in self.scheduled for name in groups[group]]
        self.average = EMA(model, config.ema)
        self.losses: Callable[..., Tensor] = model.losses
        if device.type == "cuda" and config.compile:
            torch._dynamo.config.cache_size_limit = 64  # graphs: lengths of cu_seqlens times recurrence on and off
            self.losses = torch.compile(model.losses, dynamic=False)

    def backward(self, batches: Iterator[Batch]) -> Tensor:
        """Average the gradients of one step's micro-batches; returns the mean loss, nats per token."""
        total = torch.zeros((), device=self.model.tok_emb.weight.device)
        for _ in range(self.config.micro_batches):
            ids, targets, cu_seqlens = (
                None if t is None else t.to(total.device, non_blocking=True) for t in next(batches)
            )
            segments = None if cu_seqlens is None else Segments(cu_seqlens, self.config.seq_len)
            loss = self.losses(ids, targets, segments).mean() / self.config.micro_batches
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def update(self, step: int, multiplier: float) -> None:
        """Clip, step both optimizers at the scheduled rates, clear the gradients, average."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        for group, (_, base) in zip(self.adam.param_groups, self.scheduled, strict=True):
            group["lr"] = base.lr * multiplier
        self.adam.step()
        self.muon.step(self.config.muon.lr * multiplier, muon_momentum(self.config.muon, step))
        self.adam.zero_grad()
        self.model.zero_grad()
        self.average.update()

    def warm_up(self, batches: Iterator[Batch]) -> None:
        """Run every graph once, off the clock, and throw the gradients away: weights and optimizers stay untouched."""
        batch = next(batches)
        for looped in (False, True):
            self.model.looped = looped
            for variant in _lengths(batch):
                self.backward(itertools.repeat(variant))
        self.model.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Weights, average and optimizer moments by name."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.average.state().items()}
        tensors |= {f"muon.{name}": tensor for name, tensor in self.muon.state().items()}
        for index, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{self.adam_names[index]}.{key}": value for key, value in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`, in place."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        for held, prefix in ((self.average.state(), "ema."), (self.muon.state(), "muon.")):
            if set(held) != set(part(prefix)):
                raise InputError("the saved state is of another program version: delete scratch/ to start over")
            for name, tensor in part(prefix).items():
                held[name].copy_(tensor)
        state = {index: part(f"adam.{name}.") for index, name in enumerate(self.adam_names)}
        self.adam.load_state_dict({"state": state, "param_groups": self.adam.state_dict()["param_groups"]})


def _lengths(batch: Batch) -> Iterator[Batch]:
    """The batch with as many document boundaries as training will meet: 64, 128, 192 and 256 (PR 1855)."""
    if batch.cu_seqlens is None:
        yield batch
        return
    total = batch.inputs.size(1)
    for entries in range(BUCKET, 4 * BUCKET + 1, BUCKET):
        step = -(-total // (entries - 1))
        yield batch._replace(cu_seqlens=torch.arange(entries).mul(step).clamp_max(total).int())


def train(
    trainer: Trainer,
    batches: Iterator[Batch],
    elapsed: Callable[[], float],
    *,
    resume: Snapshot | None = None,
    report: Callable[[Report], None] = lambda _: None,
    save: Callable[[Snapshot], None] | None = None,
) -> Trained:
    """Train until the budget is spent and put the averaged weights into the model.

    `elapsed` returns the seconds of training so far and is the only clock. `save` is called every
    `checkpoint_seconds` with a state from which `resume` continues to the same result.
    """
    config, model = trainer.config, trainer.model
    step, saved_at, loss = 0, elapsed(), torch.zeros(())
    if resume is not None:
        step = resume.step
        trainer.restore({name: tensor for name, tensor in resume.tensors.items() if not name.startswith("trace.")})
    earlier = (
        {n.removeprefix("trace."): t for n, t in resume.tensors.items() if n.startswith("trace.")} if resume else None
    )
    trace = Trace(model, earlier)
    while (fraction := progress(config, step, seconds := elapsed())) < 1:
        if save is not None and config.checkpoint_seconds and seconds - saved_at >= config.checkpoint_seconds:
            tensors = trainer.state() | {f"trace.{name}": tensor for name, tensor in trace.tensors().items()}
            save(Snapshot(step, seconds, tensors))
            saved_at = seconds
        multiplier = lr_multiplier(config, fraction)
        model.looped = fraction >= config.loop_at
        loss = trainer.backward(batches)
        traced = step % config.trace_every == 0
        if traced:
            trace.gradients()
        trainer.update(step, multiplier)
        step += 1
        if traced:  # the only place where the host waits for the device
            value = loss.item()
            trace.entry(step, elapsed(), multiplier, loss)
            report(Report(step, fraction, elapsed(), step * config.batch_tokens, value))
    model.looped = True
    trainer.average.apply()
    if not all(torch.isfinite(tensor).all() for tensor in (loss, *model.parameters())):
        raise InputError(f"training diverged (loss {loss.item()} at step {step}): lower the learning rates in `train`")
    return Trained(step, elapsed(), loss.item(), trace.tensors())
