"""What a run keeps while it goes on: the trace and resumable states. A submission runs once and ships without.

A saved state holds everything by name: `model`, `ema`, `muon`, `adam`, `snapshots`, and the `trace` so far.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from pgolf import ranks
from pgolf.errors import InputError
from pgolf.train.norms import gradient_norms
from pgolf.train.trace import Observe, Trace

if TYPE_CHECKING:
    from pgolf.train.trainer import Trainer


class Snapshot(NamedTuple):
    """Everything a resumed run needs; the loader is fast-forwarded by the caller."""

    step: int
    seconds: float
    tensors: dict[str, Tensor]


class Recorder:
    """Trace and states of one run."""

    def __init__(
        self,
        trainer: "Trainer",
        seconds: float,
        resume: Snapshot | None = None,
        save: Callable[[Snapshot], None] | None = None,
        observe: Observe | None = None,
    ) -> None:
        """Go on from `resume`, if any; the first process calls `save` every `checkpoint_seconds` after `seconds`."""
        self.trainer, self.save, self.saved_at = trainer, save, seconds
        self.step, earlier = 0, dict[str, Tensor]()
        if resume is not None:
            self.step, earlier = resume.step, part(resume.tensors, "trace.")
            restore(trainer, {name: tensor for name, tensor in resume.tensors.items() if not name.startswith("trace.")})
        self.trace = Trace(trainer.model, earlier, observe)

    def gradients(self) -> None:
        """Note the gradient norms of a step, between `backward` and `update`; all processes must call it."""
        self.trace.gradients(gradient_norms(self.trainer))

    def save_in_time(self, step: int, seconds: float) -> None:
        """Save the state before a step, if it is time; all processes must call it."""
        every = self.trainer.config.checkpoint_seconds
        if self.save is None or not every or seconds - self.saved_at < every:
            return
        tensors = state_of(self.trainer) | {f"trace.{name}": tensor for name, tensor in self.trace.tensors().items()}
        if ranks.rank() == 0:
            self.save(Snapshot(step, seconds, tensors))
        self.saved_at = seconds


def state_of(trainer: "Trainer") -> dict[str, Tensor]:
    """Weights, averages and optimizer moments by name."""
    tensors = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    for prefix, held in _held(trainer).items():
        tensors |= {f"{prefix}.{name}": tensor for name, tensor in held.items()}
    for index, moments in trainer.adam.state_dict()["state"].items():
        tensors |= {f"adam.{trainer.adam_names[index]}.{key}": value for key, value in moments.items()}
    return tensors


def restore(trainer: "Trainer", tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_of`, in place."""
    trainer.model.load_state_dict(part(tensors, "model."))
    for prefix, held in _held(trainer).items():
        saved = part(tensors, f"{prefix}.")
        if set(held) != set(saved):
            raise InputError("the saved state is of another program version: delete scratch/ to start over")
        for name, tensor in saved.items():
            held[name].copy_(tensor)
    state = {index: part(tensors, f"adam.{name}.") for index, name in enumerate(trainer.adam_names)}
    trainer.adam.load_state_dict({"state": state, "param_groups": trainer.adam.state_dict()["param_groups"]})


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What has a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _held(trainer: "Trainer") -> dict[str, dict[str, Tensor]]:
    """Everything but weights and AdamW's moments, by prefix of its names in a saved state."""
    held = {"ema": trainer.average.state(), "muon": trainer.muon.gathered()}
    held |= {f"ema@{decay}": ema.state() for decay, ema in trainer.candidates.items()}
    return held if trainer.snapshots is None else held | {"snapshots": trainer.snapshots.state()}
