"""Adapters that are carried from document to document: `evaluate.lora.carry` (as in Reptile, Nichol et al. 2018).

All documents of a batch start from shared A and B, A drawn once for all, which afterwards move a share of the way to
the mean of what the batch ended with.
"""

from torch import Tensor

from pgolf.evaluate.adapters import Adapters


class Carry:
    """The shared adapters of one rank."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.shared: list[Tensor] | None = None

    def begin(self, adapters: Adapters) -> None:
        """Before a batch, after its reset: all rows become the shared ones, at first those of the first row."""
        if self.shared is None:
            self.shared = [weight[0].clone() for weight in adapters.weights]
        for weight, shared in zip(adapters.weights, self.shared, strict=True):
            weight.copy_(shared)

    def end(self, adapters: Adapters) -> None:
        """After a batch, whose documents are all scored."""
        assert self.shared is not None
        for weight, shared in zip(adapters.weights, self.shared, strict=True):
            shared.lerp_(weight.mean(0), self.share)
