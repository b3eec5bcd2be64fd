"""A thread that reads micro-batches ahead of training (PR 1520, 1530)."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from pgolf.data.batches import Batch
from pgolf.data.streams import BatchStream


class Prefetch:
    """The same batches from one thread that stays `depth` of them ahead, in pinned memory for copies to the GPU.

    What is read ahead does not count as taken: `skip` passes over it first. An error of the stream is raised where its
    batch would have been. `close` ends the thread.
    """

    def __init__(self, stream: BatchStream, depth: int, pin: bool) -> None:
        assert depth >= 1
        self.stream, self.depth, self.pin = stream, depth, pin
        self._worker = ThreadPoolExecutor(1, "prefetch")
        self._ahead: deque[Future[Batch]] = deque()

    def _read(self) -> Batch:
        batch = next(self.stream)
        return Batch(*(None if t is None else t.pin_memory() for t in batch)) if self.pin else batch  # type: ignore[arg-type]

    def __iter__(self) -> "Prefetch":
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) <= self.depth:
            self._ahead.append(self._worker.submit(self._read))
        return self._ahead.popleft().result()

    def skip(self, batches: int) -> None:
        """Go on as if `batches` had been taken."""
        while batches and self._ahead:
            self._ahead.popleft().result()
            batches -= 1
        self.stream.skip(batches)

    def close(self) -> None:
        """End the thread; the stream must not be used any more."""
        self._worker.shutdown(cancel_futures=True)
