"""The training trace: what a run did over time, kept on the device until it ends.

step, seconds, lr, loss        one value per entry
grad_norm [entries, L]         gradient norm per physical layer, before the global clip (after the local one)
observed [observations]        seconds of every fourth entry, at which the model was looked at, where somebody wants it:
...      [observations, ...]   what was seen, by name: see `pgolf.train.openings`
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pgolf.model.gpt import GPT

EVERY = 4
"""Entries between two looks at the model: a look is a short pass without gradients, on the training clock."""
Observe = Callable[[GPT], dict[str, Tensor]]


class Trace:
    """Entries gathered during training; `tensors` stacks them."""

    def __init__(self, model: GPT, earlier: dict[str, Tensor] | None = None, observe: Observe | None = None) -> None:
        """`earlier` is the trace of an interrupted run, which this one continues."""
        self.model, self.observe = model, observe
        self.rows: dict[str, list[Tensor]] = {
            name: list(values.cpu().unbind()) for name, values in (earlier or {}).items()
        }
        self.layers = [list(block.parameters()) for block in model.blocks]

    @torch.no_grad()
    def gradients(self, norms: Mapping[nn.Parameter, Tensor]) -> None:
        """Note the gradient norms by layer, from those of the parameters; call between backward and clipping."""
        layers = [torch.stack([norms[p] for p in layer if p in norms]).norm() for layer in self.layers]
        self._add("grad_norm", torch.stack(layers))

    @torch.no_grad()
    def entry(self, step: int, seconds: float, lr: float, loss: Tensor) -> None:
        """Note one step: progress in optimizer steps and seconds, learning-rate multiplier, loss in nats per token."""
        self._add("step", torch.tensor(step))
        self._add("seconds", torch.tensor(seconds))
        self._add("lr", torch.tensor(lr))
        self._add("loss", loss.detach().float())
        if self.observe is not None and len(self.rows["step"]) % EVERY == 1:
            self._add("observed", torch.tensor(seconds))
            for name, value in self.observe(self.model).items():
                self._add(name, value)

    def _add(self, name: str, value: Tensor) -> None:
        self.rows.setdefault(name, []).append(value.clone())

    def tensors(self) -> dict[str, Tensor]:
        """Every series, stacked over the entries."""
        return {name: torch.stack([value.cpu() for value in values]) for name, values in self.rows.items() if values}
