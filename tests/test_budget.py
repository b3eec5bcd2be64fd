"""The phase clock on a fake time source, and every verdict of a clock."""

import contextlib
import math

import pytest

from pgolf.budget import Clock, Ledger, clock_verdict

H100 = "8x NVIDIA H100 80GB HBM3"


class Time:
    """A time source that moves only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pauses_and_inner_phases_are_not_charged_to_the_outer_one() -> None:
    time = Time()
    clock = Clock(now=time)
    time.now += 50  # nothing runs yet
    with clock.phase("train"):
        time.now += 3
        with clock.paused():
            time.now += 100
            with clock.phase("compile"):
                time.now += 7
            time.now += 100
        time.now += 4
        assert clock.seconds("train") == 7
        with clock.phase("train"):  # the same name inside itself is not counted twice
            time.now += 1
    time.now += 50
    assert clock.phases() == {"train": 8, "compile": 7}
    assert clock.seconds("validate") == 0


def test_a_resumed_clock_goes_on() -> None:
    time = Time()
    clock = Clock({"train": 120.5}, now=time)
    assert clock.seconds("train") == 120.5
    with clock.phase("train"):
        time.now += 10
        assert clock.seconds("train") == 130.5
    assert Clock(clock.phases(), now=time).seconds("train") == 130.5


def test_a_phase_that_raises_is_still_charged_and_closed() -> None:
    time = Time()
    clock = Clock(now=time)
    with contextlib.suppress(RuntimeError), clock.phase("train"):
        time.now += 2
        raise RuntimeError
    time.now += 5
    assert clock.seconds("train") == 2


def test_negative_or_infinite_elapsed_time_is_refused() -> None:
    for seconds in (-1.0, math.inf, math.nan):
        with pytest.raises(AssertionError, match="bad seconds"):
            Clock({"train": seconds})


def test_the_real_clock_moves() -> None:
    clock = Clock()
    with clock.phase("train"):
        while clock.seconds("train") == 0:
            pass
    assert 0 < clock.seconds("train") < 5


def test_calibration_is_training_time() -> None:
    ledger = Ledger(train_seconds=599.5, calibrate_seconds=4.7, eval_seconds=10)
    assert ledger.training == pytest.approx(604.2)
    assert ledger.evaluation == 10
    assert Ledger(train_seconds=None, calibrate_seconds=4.7, eval_seconds=10).training is None
    assert Ledger(train_seconds=1, calibrate_seconds=None, eval_seconds=10).training is None


@pytest.mark.parametrize(
    ("seconds", "hardware", "adopted", "verdict"),
    [
        (600.0, H100, False, "pass"),
        (600.001, H100, False, "fail"),
        (0.0, H100, False, "pass"),
        (10.0, "cpu", False, "not comparable"),
        (9000.0, "cpu", False, "not comparable"),
        (10.0, "1x NVIDIA H100 80GB HBM3", False, "not comparable"),
        (10.0, "8x NVIDIA H100 PCIe", False, "not comparable"),
        (10.0, H100, True, "unknown"),
        (9000.0, H100, True, "unknown"),
        (10.0, "cpu", True, "unknown"),
        (None, H100, False, "unknown"),
        (10.0, None, False, "unknown"),
        (math.nan, H100, False, "unknown"),
        (-1.0, H100, False, "unknown"),
    ],
)
def test_verdicts(seconds: float | None, hardware: str | None, adopted: bool, verdict: str) -> None:
    assert clock_verdict(seconds, 600.0, hardware, H100, adopted) == verdict
