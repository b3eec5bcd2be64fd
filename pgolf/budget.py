"""The phase clock and the two ledgers: what counts as training time and what as evaluation time.

The challenge allows 600 s of training and another 600 s of evaluation. Training time is the training loop plus
calibration, because calibration reads training data (rulings in PR 1004 and issue 677; a run that trained 599.5 s and
then calibrated 4.7 s was disputed). Compilation, warm-up with restored weights and validation passes are excluded.
Only this module reads a clock; standard library only, because it belongs to the runtime closure.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "fail", "not comparable", "unknown"]


class Clock:
    """Seconds per named phase. Phases nest exclusively: while an inner phase runs, the outer one stands still.

    `phases` holds seconds that an interrupted run already used, so that resuming does not reset the clock. GPU work
    is asynchronous: synchronize before a phase ends.
    """

    def __init__(
        self, phases: Mapping[str, float] | None = None, *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._phases = dict(phases or {})
        assert all(0 <= seconds < math.inf for seconds in self._phases.values()), f"bad seconds in {self._phases}"
        self._now = now
        self._stack: list[str | None] = []
        self._mark = now()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the block for `name`; the same name again adds up."""
        with self._enter(name):
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count the seconds of the block for no phase: compilation, validation."""
        with self._enter(None):
            yield

    def seconds(self, name: str) -> float:
        """Seconds of a phase so far, the running one included; 0.0 for a phase that never ran."""
        self._settle()
        return self._phases.get(name, 0.0)

    def phases(self) -> dict[str, float]:
        """Seconds of every phase so far: pass it to a new Clock to resume."""
        self._settle()
        return dict(self._phases)

    @contextlib.contextmanager
    def _enter(self, name: str | None) -> Iterator[None]:
        self._settle()
        self._stack.append(name)
        try:
            yield
        finally:
            self._settle()
            self._stack.pop()

    def _settle(self) -> None:
        """Charge the time since the last call to the innermost phase."""
        now = self._now()
        if self._stack and (name := self._stack[-1]) is not None:
            self._phases[name] = self._phases.get(name, 0.0) + now - self._mark
        self._mark = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Seconds by what they are charged to; None where nobody measured them."""

    train_seconds: float | None
    """Training loop without compilation, warm-up and validation."""
    calibrate_seconds: float | None
    """Collecting Hessians from training data after the loop."""
    eval_seconds: float | None
    """Decoding the artifact, scoring and test-time training."""

    @property
    def training(self) -> float | None:
        """Seconds on the training clock: train + calibrate; None if either is unknown."""
        if self.train_seconds is None or self.calibrate_seconds is None:
            return None
        return self.train_seconds + self.calibrate_seconds

    @property
    def evaluation(self) -> float | None:
        """Seconds on the evaluation clock."""
        return self.eval_seconds


def clock_verdict(seconds: float | None, cap: float, hardware: str | None, reference: str, adopted: bool) -> Verdict:
    """Judge one clock; `cap` is the largest allowed number of seconds.

    An adopted checkpoint was trained elsewhere, so its time is "unknown", never "pass"; so are seconds or hardware
    that nobody recorded. Seconds on other hardware than the reference are "not comparable".
    """
    if adopted or seconds is None or hardware is None or not 0 <= seconds < math.inf:
        return "unknown"
    if hardware != reference:
        return "not comparable"
    return "pass" if seconds <= cap else "fail"
