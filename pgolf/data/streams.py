"""What a loader is to the training loop, and the loaders of several ranks in turn."""

from collections.abc import Sequence
from typing import Protocol

from pgolf.data.batches import Batch


class BatchStream(Protocol):
    """Micro-batches without end, in a fixed order."""

    def __iter__(self) -> "BatchStream":
        """Itself."""
        ...

    def __next__(self) -> Batch:
        """The next micro-batch."""
        ...

    def skip(self, batches: int) -> None:
        """Pass over micro-batches that an interrupted run has used."""
        ...


class InTurn:
    """The streams of W ranks dealt to one: micro-batch i is the next of stream i mod W."""

    def __init__(self, streams: Sequence[BatchStream]) -> None:
        self.streams, self._index = streams, 0

    def __iter__(self) -> "InTurn":
        return self

    def __next__(self) -> Batch:
        self._index += 1
        return next(self.streams[(self._index - 1) % len(self.streams)])

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken."""
        world = len(self.streams)
        for turn in range(min(world, batches)):
            self.streams[(self._index + turn) % world].skip((batches - turn + world - 1) // world)
        self._index += batches
