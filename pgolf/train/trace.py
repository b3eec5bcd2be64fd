"""The training trace: what a run did over time, kept on the device until it ends.

step, seconds, lr, loss        one value per entry
grad_norm [entries, L]         gradient norm per physical layer, before the global clip (after the local one)
skip_gate [entries, skips]     mean of sigmoid(skip_gates) per decoder position, where the model has such gates
q_gain    [entries, L, H]      query gain per layer and head
attn_gate [entries, L, H]      norm of the weights of each head's attention gate, where the model has such gates
mlp_gate  [entries, L, H]      the same of the MLP gates
"""

import torch
from torch import Tensor

from pgolf.model.gpt import GPT

GATES = ("attn_gate", "mlp_gate")


class Trace:
    """Entries gathered during training; `tensors` stacks them."""

    def __init__(self, model: GPT, earlier: dict[str, Tensor] | None = None) -> None:
        """`earlier` is the trace of an interrupted run, which this one continues."""
        self.rows: dict[str, list[Tensor]] = {
            name: list(values.cpu().unbind()) for name, values in (earlier or {}).items()
        }
        self.layers = [list(block.parameters()) for block in model.blocks]
        named = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.skip_gates = named.get("skip_gates")
        self.q_gains = [gain for name, gain in named.items() if name.endswith(".q_gain")]
        gates = {kind: [w for name, w in named.items() if name.endswith(f".{kind}_w")] for kind in GATES}
        self.gates = {kind: weights for kind, weights in gates.items() if weights}

    @torch.no_grad()
    def gradients(self) -> None:
        """Note the gradient norms; call between backward and clipping."""
        grads = [[p.grad for p in layer if p.grad is not None] for layer in self.layers]
        norms = [torch.stack(torch._foreach_norm(layer)).norm() for layer in grads]
        self._add("grad_norm", torch.stack(norms))

    @torch.no_grad()
    def entry(self, step: int, seconds: float, lr: float, loss: Tensor) -> None:
        """Note one step: progress in optimizer steps and seconds, learning-rate multiplier, loss in nats per token."""
        self._add("step", torch.tensor(step))
        self._add("seconds", torch.tensor(seconds))
        self._add("lr", torch.tensor(lr))
        self._add("loss", loss.detach().float())
        if self.skip_gates is not None:
            self._add("skip_gate", torch.sigmoid(self.skip_gates).mean(1))
        self._add("q_gain", torch.stack(self.q_gains))
        for kind, weights in self.gates.items():
            self._add(kind, torch.linalg.vector_norm(torch.stack(weights), dim=-1))

    def _add(self, name: str, value: Tensor) -> None:
        self.rows.setdefault(name, []).append(value.clone())

    def tensors(self) -> dict[str, Tensor]:
        """Every series, stacked over the entries."""
        return {name: torch.stack([value.cpu() for value in values]) for name, values in self.rows.items() if values}
