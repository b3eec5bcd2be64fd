import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.config import ModelConfig
from pgolf.model.wiring import run_begun, wire


def test_the_lists_of_pr_1493():
    config = ModelConfig()
    assert wire(config, 1) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
    assert wire(config, config.loop_runs) == ((0, 1, 2, 3, 4, 5, 3, 4), (5, 3, 4, 5, 6, 7, 8, 9, 10))
    assert wire(config, config.loop_runs).skips == 8
    assert wire(config, 1).skips == 5


def test_the_lists_of_earlier_records():
    """Layers 4 and 5 twice (PR 1285) and three times (PR 1394)."""
    twice = wire(ModelConfig(loop_start=4, loop_end=5, loop_runs=2), 2)
    assert twice.encoder + twice.decoder == (0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10)
    assert len(twice.encoder) == twice.skips == 6
    thrice = wire(ModelConfig(loop_start=4, loop_end=5, loop_runs=3), 3)
    assert len(thrice.encoder + thrice.decoder) == 15


def test_progressive_recurrence_takes_the_lists_of_fewer_runs():
    """PR 1412 with the segment of PR 1493: one pass more, then another."""
    assert wire(ModelConfig(), 2) == ((0, 1, 2, 3, 4, 5, 3), (4, 5, 6, 7, 8, 9, 10))
    assert wire(ModelConfig(), 3) == wire(ModelConfig(loop_runs=5), 3)


def test_runs_begin_where_the_segment_does():
    order = sum(wire(ModelConfig(), 3), ())
    begun = [run_begun(ModelConfig(), 3, place) for place in range(len(order))]
    assert [(place, run) for place, run in enumerate(begun) if run is not None] == [(3, 0), (6, 1), (9, 2)]
    assert {order[place] for place in (3, 6, 9)} == {3}
    assert [run_begun(ModelConfig(), 1, place) for place in range(11)].count(None) == 10
    assert run_begun(ModelConfig(loop_runs=1), 1, 3) is None


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 12), runs=st.integers(1, 4), data=st.data())
def test_each_layer_runs_as_often_as_asked(layers, runs, data):
    start = data.draw(st.integers(0, layers - 1))
    end = data.draw(st.integers(start, layers - 1))
    config = ModelConfig(
        layers=layers, loop_start=start, loop_end=end, loop_runs=runs, xsa_layers=0, parallel_from=None
    )
    plain, looped = wire(config, 1), wire(config, config.loop_runs)
    assert plain.encoder + plain.decoder == tuple(range(layers))
    order = looped.encoder + looped.decoder
    counts = Counter(order)
    assert counts == {layer: runs if start <= layer <= end else 1 for layer in range(layers)}
    steps = {b - a for a, b in itertools.pairwise(order)}
    assert steps <= {1, start - end}  # onwards, or back to the start of the segment
    for wiring in (plain, looped):
        assert 0 <= len(wiring.decoder) - len(wiring.encoder) <= 1
        assert wiring.skips == len(wiring.encoder)
