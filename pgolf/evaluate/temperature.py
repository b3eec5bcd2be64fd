"""One temperature for all scores: p = softmax(z / T) with z the softcapped logits (PR 401's author).

A scalar that is fixed before the evaluation keeps p a normalised function of the text so far. It must come from
training text, as `pgolf sweep temperature` finds it: picked on validation text it leaks what was scored.
"""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from pgolf.model.gpt import GPT


class Tempered(nn.Module):
    """A head whose logits are divided by a temperature."""

    def __init__(self, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.head, self.temperature = head, temperature

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the head takes to what it gives [B, T, V], over T."""
        logits: Tensor = self.head(*inputs)
        return logits / self.temperature


@contextlib.contextmanager
def tempered(model: GPT, temperature: float) -> Iterator[None]:
    """Within, the model scores at this temperature."""
    head = model.head
    try:
        if temperature != 1:
            model.head = Tempered(head, temperature)  # type: ignore[assignment]
        yield
    finally:
        model.head = head
