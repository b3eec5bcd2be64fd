"""The budget guard with a clock that only work moves."""

import numpy as np
import pytest
from document_models import settings_of, stream_of, tiny_model

from pgolf.evaluate import document_ttt as module
from pgolf.evaluate.documents import find_documents
from pgolf.evaluate.lora_ttt import passes
from pgolf.evaluate.pace import FIRST, Pace


class Machine:
    """So many tokens a second."""

    def __init__(self, rate):
        self.rate, self.now = rate, 0.0

    def work(self, pace, planned, actual):
        self.now += actual / self.rate
        pace.did(planned, actual)


def run(budget, work=1000, rate=10.0, most=8, step=10):
    machine = Machine(rate)
    pace = Pace(budget, work, most, lambda: machine.now)
    while pace.rest > 0:
        learns = 1 if pace.learning else 0.3
        machine.work(pace, step * pace.factor, step * learns)
    return machine.now, pace


@pytest.mark.parametrize("budget", [None, 110.0, 1e9])
def test_a_plan_that_fits_is_not_touched(budget):
    seconds, pace = run(budget)
    assert (seconds, pace.factor, pace.learning) == (pytest.approx(100.0), 1, True)


@pytest.mark.parametrize(("budget", "factor"), [(95.0, 2), (60.0, 2), (40.0, 4), (22.0, 8)])
def test_a_plan_that_does_not_fit_is_thinned_out_early(budget, factor):
    seconds, pace = run(budget)
    assert seconds <= budget
    assert seconds > 0.8 * budget, "what the budget allows is used"
    assert (pace.longest, pace.stopped) == (factor, False)
    assert f"chunks up to {factor} times as long to keep the budget" in pace.remark


def test_beyond_that_nothing_is_learned_and_all_is_scored():
    seconds, pace = run(9.0)
    assert pace.stopped
    assert seconds < 12
    assert pace.remark.endswith("chunks up to 8 times as long, some text only scored to keep the budget")


def test_what_was_given_up_too_early_comes_back():
    machine = Machine(1.0)
    pace = Pace(100.0, 400, 8, lambda: machine.now)
    for _ in range(FIRST + 10):
        machine.work(pace, 1, 1)  # short chunks, slow
    slow = pace.factor
    machine.rate = 100.0
    for _ in range(20):
        machine.work(pace, 10, 10)
    assert (slow, pace.factor, pace.learning) == (8, 1, True)


def test_the_first_passes_are_not_measured():
    machine = Machine(1.0)
    pace = Pace(60.0, 100, 8, lambda: machine.now)
    for _ in range(FIRST):
        machine.work(pace, 1, 5)  # compilation
    assert pace.left is None
    machine.rate = 4.0
    machine.work(pace, 1, 1)
    assert pace.left == pytest.approx(95 / 4)
    assert pace.factor == 1
    assert pace.remark == "24 s left"


@pytest.mark.parametrize("ttt", ["lora", "cached"])
def test_an_evaluation_under_pressure_scores_everything(monkeypatch, ttt):
    """A clock that runs a second per pass: the budget forces longer chunks, then scoring only."""
    model, tokens = tiny_model(), stream_of(5, 60, 31, 4, 40)
    full, updates = module.document_ttt(model, tokens, settings_of(ttt, stride=8))
    for budget in (30.0, 12.0):
        ticks = iter(range(10_000))
        monkeypatch.setattr(module.Clock, "seconds", lambda self, name, ticks=ticks: float(next(ticks)))
        remarks = []
        config = settings_of(ttt, stride=8, seconds=budget)
        losses, fewer = module.document_ttt(model, tokens, config, lambda l, p, remark, *_, r=remarks: r.append(remark))
        monkeypatch.undo()
        assert np.isfinite(losses).all()
        assert len(fewer) < len(updates)
        assert "to keep the budget" in remarks[-1]
        assert not np.array_equal(losses, full)


def test_work_is_what_the_model_reads(monkeypatch):
    """The plan's tokens are those that go through the model."""
    model, tokens = tiny_model(), stream_of(5, 40, 21)
    planned, rests = [], []

    class Watched(Pace):
        def __init__(self, budget, work, *rest):
            planned.append(work)
            super().__init__(budget, work, *rest)

        def did(self, *work):
            super().did(*work)
            rests.append(self.rest)

    monkeypatch.setattr("pgolf.evaluate.pace.Pace", Watched)
    remarks = []
    module.document_ttt(model, tokens, settings_of(documents=1), lambda *done: remarks.append(done[2]), forecast=True)
    assert planned == [passes(find_documents(tokens, 1).targets, 4, 16)]
    assert abs(rests[-1]) <= 3 * 4  # last chunks are short
    assert any("s left" in remark for remark in remarks)
    module.document_ttt(model, tokens, settings_of(documents=1), lambda *done: remarks.append(done[2]))
    assert len(planned) == 1, "without a budget nobody measures unless asked"
    assert set(remarks[-3:]) == {""}
