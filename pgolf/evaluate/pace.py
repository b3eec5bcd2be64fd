"""The budget guard: measured throughput says early whether the plan fits, and by how much to thin it out if not.

Work is counted in tokens that pass through the model. What is left of the plan takes rest / rate seconds; where that is
more than the budget still has, chunks become 2, 4, 8 ... times as long, which makes the rest about that much cheaper;
where that is not enough, nothing is learned. The forecast is made again after every pass, so what was given up too
early comes back. Every target is scored in any case.
"""

from collections.abc import Callable

from pgolf.evaluate.lora_ttt import Steady

MARGIN = 1.05
"""The forecast times this must fit."""
FIRST = 4
"""Passes before measurement begins: what they take longer is allocation and compilation."""
SHARE = 0.02
"""Of the budget, measured before anything is given up: the first chunks of documents are short and slow."""


class Pace(Steady):
    """Work done and seconds used by one rank."""

    def __init__(self, budget: float | None, work: float, most: int, seconds: Callable[[], float]) -> None:
        """`budget`: seconds, None without limit; `work`: tokens of the whole plan; `most`: the largest factor.

        `seconds` says how many have passed.
        """
        self.budget, self.rest, self.most, self.seconds = budget, float(work), most, seconds
        self.factor, self.learning = 1, True
        self.longest, self.stopped = 1, False
        self._passes, self._done = 0, 0.0
        self._begun = 0.0

    def did(self, planned: float, actual: float) -> None:
        """A pass of `actual` tokens did what was planned to take `planned`; afterwards the factor is up to date."""
        self.rest -= planned
        self._passes += 1
        if self._passes == FIRST:
            self._begun = self.seconds()
        elif self._passes > FIRST:
            self._done += actual
            self._thin_out()

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take as it is done now; None before there is a measurement."""
        if not self._done:
            return None
        return max(self.rest, 0.0) / self.factor * (self.seconds() - self._begun) / self._done

    def _thin_out(self) -> None:
        """The least factor with which the rest fits; learning goes on as long as one does."""
        if self.budget is None or self.seconds() - self._begun < SHARE * self.budget:
            return
        self.factor, remaining = 1, self.budget - self.seconds()
        while self.factor < self.most and not self._fits(remaining):
            self.factor *= 2
        self.learning = self._fits(remaining)
        self.longest, self.stopped = max(self.longest, self.factor), self.stopped or not self.learning

    def _fits(self, remaining: float) -> bool:
        assert self.left is not None
        return self.left * MARGIN <= max(remaining, 0.0)

    @property
    def remark(self) -> str:  # type: ignore[override]
        """Seconds left, and what became of the plan."""
        parts = [] if self.left is None else [f"{self.left:.0f} s left"]
        if self.longest > 1:
            parts.append(f"chunks up to {self.longest} times as long")
        if self.stopped:
            parts.append("some text only scored")
        return ", ".join(parts) + (" to keep the budget" if len(parts) > 1 else "")
