import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.train.config import MuonConfig, TrainConfig
from pgolf.train.schedule import lr_multiplier, muon_momentum, progress


def test_progress_by_steps():
    config = TrainConfig(steps=200, seconds=None)
    assert [progress(config, step, 1e9) for step in (0, 50, 199, 200, 201)] == [0, 0.25, 0.995, 1, 1]


def test_progress_by_the_clock_less_the_reserve():
    config = TrainConfig()  # 600 s, of which 12 are kept
    assert progress(config, 10**9, 0.0) == 0
    assert progress(config, 0, 294.0) == 0.5
    assert progress(config, 0, 587.9) < 1
    assert progress(config, 0, 588.0) == progress(config, 0, 600.0) == 1


@pytest.mark.parametrize(
    ("warmdown", "floor", "points"),
    [
        (0.72, 0.0, {0: 1, 0.279: 1, 0.28: 1, 0.64: 0.5, 0.82: 0.25, 1: 0}),  # PR 1493
        (0.85, 0.1, {0.1: 1, 0.15: 1, 0.575: 0.5, 0.915: 0.1, 0.95: 0.1, 1: 0.1}),  # PR 1855
        (0.0, 0.0, {0: 1, 0.5: 1, 0.999: 1, 1: 1}),
        (1.0, 0.0, {0: 1, 0.25: 0.75, 1: 0}),
        (0.5, 1.0, {0: 1, 0.75: 1, 1: 1}),
    ],
    ids=str,
)
def test_multiplier_at_points_worked_out_by_hand(warmdown, floor, points):
    config = TrainConfig(warmdown=warmdown, lr_floor=floor)
    for f, expected in points.items():
        assert lr_multiplier(config, f, 0) == pytest.approx(expected, abs=1e-12), f


UNIT = st.floats(0, 1)


@given(warmdown=UNIT, floor=UNIT, a=UNIT, b=UNIT)
def test_multiplier_never_rises_and_stays_between_floor_and_one(warmdown, floor, a, b):
    config = TrainConfig(warmdown=warmdown, lr_floor=floor)
    early, late = (lr_multiplier(config, f, 0) for f in sorted((a, b)))
    assert floor <= late <= early + 1e-9
    assert early <= 1 + 1e-9


def test_momentum_rises_linearly_in_steps():
    config = MuonConfig()  # .92 to .99 over 1500 steps
    for step, expected in ((0, 0.92), (750, 0.955), (1500, 0.99), (10_000, 0.99)):
        assert muon_momentum(config, step) == pytest.approx(expected, abs=1e-12)
    assert muon_momentum(MuonConfig(momentum_warmup=0), 0) == 0.99
    assert muon_momentum(MuonConfig(momentum=0.97, momentum_warmup=1), 1) == pytest.approx(0.97)
