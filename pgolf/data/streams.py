"""What a loader is to the training loop, the loaders of several ranks in turn, and one shared out to processes."""

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


class Dealt:
    """The part of one of W processes: micro-batches r, r + W, r + 2 W, ... of a stream that each has for itself."""

    def __init__(self, stream: BatchStream, rank: int, world: int) -> None:
        self.stream, self.world = stream, world
        stream.skip(rank)

    def __iter__(self) -> "Dealt":
        return self

    def __next__(self) -> Batch:
        batch = next(self.stream)
        self.stream.skip(self.world - 1)
        return batch

    def skip(self, batches: int) -> None:
        """Go on as if `batches` of this part had been taken."""
        self.stream.skip(batches * self.world)
