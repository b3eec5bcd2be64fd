"""Every schedule at its knots, and those that depend on the step against a run simulated second by second."""

import math

import pytest

from pgolf.errors import InputError
from pgolf.train.config import CurriculumConfig, MuonConfig, QatConfig, TrainConfig
from pgolf.train.schedule import (
    ALL_RUNS,
    decay_multiplier,
    lr_multiplier,
    micro_batches,
    micro_batches_before,
    progress,
    row_length,
    settings,
)


def config(**changes):
    return TrainConfig(**({"steps": 1000, "seconds": None} | changes))


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({"schedule": "sqrt", "warmdown": 0.4}, {0: 1, 0.59: 1, 0.6: 1, 0.7: 0.5, 0.825: 0.25, 1: 0}),
        ({"schedule": "sqrt", "warmdown": 0.4, "lr_floor": 0.3}, {0.7: 0.5, 0.825: 0.3, 1: 0.3}),
        ({"schedule": "cosine", "warmdown": 0.5}, {0: 1, 0.5: 1, 0.625: (1 + 0.5**0.5) / 2, 0.75: 0.5, 1: 0}),
        ({"schedule": "cosine", "warmdown": 1.0, "lr_floor": 0.1}, {0: 1, 0.5: 0.5, 1: 0.1}),
        ({"schedule": "d2z"}, {0: 1, 0.25: 0.75, 1: 0}),
        ({"schedule": "d2z", "lr_floor": 0.3}, {0.5: 0.5, 0.9: 0.3}),
        ({"schedule": "linear", "warmdown": 0.5, "lr_warmup": 0.1}, {0: 0, 0.05: 0.5, 0.1: 1, 0.5: 1, 0.75: 0.5}),
        ({"schedule": "linear", "warmdown": 0.5, "lr_floor": 0.2, "lr_warmup": 0.1}, {0.01: 0.1, 1: 0.2}),
    ],
    ids=str,
)
def test_points_worked_out_by_hand(changes, points):
    for f, expected in points.items():
        assert lr_multiplier(config(**changes), f, round(1000 * f)) == pytest.approx(expected, abs=1e-12), f


def test_d2z_rises_for_200_steps_and_then_jumps_down_to_the_line():
    """PR 401's author: t / 200, then 1 - elapsed / T."""
    c = config(schedule="d2z", lr_warmup_steps=200)
    found = [lr_multiplier(c, step / 1000, step) for step in (0, 100, 199, 200, 600, 999)]
    assert found == pytest.approx([0, 0.5, 0.995, 0.8, 0.4, 0.001])


def test_iterations_by_steps_are_the_last_n():
    c = config(schedule="iterations", warmdown_steps=400)
    for step in range(1, 1000):
        assert lr_multiplier(c, step / 1000, step) == pytest.approx(min(1, (1000 - step) / 400))


@pytest.mark.parametrize("slow", [0.0, 40.0], ids=["even steps", "slow first step"])
def test_iterations_by_the_clock_follow_the_published_rule(slow):
    """m = min(1, remaining / (N s)) with s = elapsed / steps, in seconds, as the programs compute it."""
    c = TrainConfig(schedule="iterations", warmdown_steps=30, seconds=100.0, reserve_seconds=10.0)
    seconds, began = 0.0, None
    for step in range(1, 200):
        seconds += 0.5 + (slow if step == 1 else 0)
        if seconds >= 90:
            break
        expected = min(1.0, (90 - seconds) / (30 * seconds / step))
        assert lr_multiplier(c, progress(c, step, seconds), step) == pytest.approx(expected)
        began = step if began is None and expected < 1 else began
    assert began == (1 if slow else 151)  # the documented trap: one slow step and the run begins with decay


def test_iterations_are_all_decay_where_the_warmdown_exceeds_the_budget():
    """178 ms a step: 3500 of them are 623 s, more than 600."""
    c = TrainConfig(schedule="iterations", warmdown_steps=3500, seconds=600.0, reserve_seconds=0.0)
    assert lr_multiplier(c, progress(c, 0, 0.0), 0) == 1
    assert lr_multiplier(c, progress(c, 10, 1.78), 10) == pytest.approx((600 - 1.78) / 623)


def test_the_longer_warm_up_counts():
    c = config(schedule="linear", warmdown=0.5, lr_warmup=0.02, lr_warmup_steps=100)
    assert [lr_multiplier(c, step / 1000, step) for step in (10, 50, 100)] == pytest.approx([0.1, 0.5, 1])


def test_weight_decay_tapers_to_half():
    """PR 1729: 1 until 70 % of training, then linear to .5."""
    muon = MuonConfig(taper_from=0.7, taper_to=0.5)
    assert [decay_multiplier(muon, f) for f in (0, 0.7, 0.85, 1)] == pytest.approx([1, 1, 0.75, 0.5])
    assert [decay_multiplier(MuonConfig(), f) for f in (0, 0.5, 1)] == [1, 1, 1]
    assert decay_multiplier(MuonConfig(taper_from=0.0, taper_to=0.0), 0.25) == 0.75


def test_row_length_in_thirds_of_the_ramp():
    c = config(curriculum=CurriculumConfig(seq_ramp=0.25))
    expected = {0: 256, 0.08: 256, 0.0826: 512, 0.167: 512, 0.168: 1024, 0.2499: 1024, 0.25: 2048, 1: 2048}
    assert {f: row_length(c, f) for f in expected} == expected
    assert row_length(config(), 0.0) == 2048


def test_batch_ramp_in_whole_micro_batches():
    """262,144 to 786,432 tokens over 1000 steps, 98,304 at a time."""
    c = config(curriculum=CurriculumConfig(batch_tokens=262_144))
    assert [micro_batches(c, step) for step in (0, 250, 500, 1000, 5000)] == [3, 4, 5, 8, 8]
    sizes = [micro_batches(c, step) for step in range(1500)]
    assert sizes == sorted(sizes)
    assert micro_batches_before(c, 1500) == sum(sizes)
    assert micro_batches_before(config(), 7) == 7 * 8
    tiny = config(curriculum=CurriculumConfig(batch_tokens=1))
    assert micro_batches(tiny, 0) == 1


def test_quantization_aware_training_starts_in_the_warmdown():
    by_rate = config(warmdown=0.5, lr_warmup_steps=50, qat=QatConfig(below=0.149))
    on = [step for step in range(1000) if settings(by_rate, step, step / 1000).quantized]
    assert on == list(range(926, 1000))  # multiplier .149 at .9255; not in the warm-up, whose rates are low too
    by_time = config(qat=QatConfig(last=0.15))
    assert [step for step in range(1000) if settings(by_time, step, step / 1000).quantized] == list(range(851, 1000))
    assert not any(settings(config(), step, step / 1000).quantized for step in range(1000))


def test_progressive_recurrence_adds_a_pass_at_a_time():
    """PR 1412: the first extra pass at .50, the second at .65."""
    c = config(loop_at=0.5, loop_further_at=(0.65,))
    assert [settings(c, 0, f).runs for f in (0, 0.499, 0.5, 0.649, 0.65, 1)] == [1, 1, 2, 2, 3, 3]
    with pytest.raises(InputError, match="`loop_further_at`"):
        config(loop_at=0.5, loop_further_at=(0.4,))


@pytest.mark.parametrize("loop_at", [0.0, 0.35, 0.8, 1.0])
def test_by_steps_progress_can_follow_a_clock(loop_at):
    """Against a run simulated step by step: a step takes one second, with recurrence 1.5."""
    c, seconds, times = config(steps=60, loop_at=loop_at, loop_cost=1.5), 0.0, []
    plain = 60 * loop_at * 1.5 / (1 + 0.5 * loop_at)  # steps until loop_at of the whole time: may end inside a step
    for step in range(60):
        times.append(seconds)
        within = min(max(plain - step, 0), 1)
        seconds += within + 1.5 * (1 - within)
    assert [progress(c, step, 0.0) for step in range(60)] == pytest.approx([time / seconds for time in times])
    assert progress(c, 60, 0.0) == 1
    assert max(progress(c, step, 0.0) for step in range(60)) < 1


def test_recurrence_starts_at_the_published_step():
    """PR 1855's log: 4,945 steps, 96.3 ms each before recurrence, which came on at step 2178, and 140.9 after it."""
    c = config(steps=4945, loop_at=0.35, loop_cost=140.9 / 96.3)
    first = next(step for step in range(4945) if settings(c, step, progress(c, step, 0.0)).runs > 1)
    assert abs(first - 2178) <= 2
    assert progress(config(steps=4945), 2178, 0.0) == 2178 / 4945
    with pytest.raises(InputError, match=r"`loop_cost` is 0\.5"):
        config(loop_cost=0.5)


def test_settings_gather_the_step():
    now = settings(config(loop_at=0.5, muon=MuonConfig(taper_from=0.0, taper_to=0.0)), 750, 0.75)
    assert now.runs == ALL_RUNS
    assert now.decay == 0.25
    assert now.momentum == pytest.approx(0.92 + 0.07 / 2)
    assert (now.seq_len, now.micro_batches) == (2048, 8)
    assert settings(config(loop_at=0.5), 1, 0.49).runs == 1
    assert math.isclose(now.multiplier, 0.25 / 0.72)
