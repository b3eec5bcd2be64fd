import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.config import ModelConfig
from pgolf.model.wiring import wire


def test_the_lists_of_pr_1493():
    config = ModelConfig()
    assert wire(config, looped=False) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10))
    assert wire(config, looped=True) == ((0, 1, 2, 3, 4, 5, 3, 4), (5, 3, 4, 5, 6, 7, 8, 9, 10))
    assert wire(config, looped=True).skips == 8
    assert wire(config, looped=False).skips == 5


def test_the_lists_of_earlier_records():
    """Spec 4.14: layers 4 and 5 twice (PR 1285) and three times (PR 1394)."""
    twice = wire(ModelConfig(loop_start=4, loop_end=5, loop_runs=2), looped=True)
    assert twice.encoder + twice.decoder == (0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10)
    assert len(twice.encoder) == twice.skips == 6
    thrice = wire(ModelConfig(loop_start=4, loop_end=5, loop_runs=3), looped=True)
    assert len(thrice.encoder + thrice.decoder) == 15


@settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 12), runs=st.integers(1, 4), data=st.data())
def test_each_layer_runs_as_often_as_asked(layers, runs, data):
    start = data.draw(st.integers(0, layers - 1))
    end = data.draw(st.integers(start, layers - 1))
    config = ModelConfig(
        layers=layers, loop_start=start, loop_end=end, loop_runs=runs, xsa_layers=0, parallel_from=None
    )
    plain, looped = wire(config, looped=False), wire(config, looped=True)
    assert plain.encoder + plain.decoder == tuple(range(layers))
    order = looped.encoder + looped.decoder
    counts = Counter(order)
    assert counts == {layer: runs if start <= layer <= end else 1 for layer in range(layers)}
    steps = {b - a for a, b in itertools.pairwise(order)}
    assert steps <= {1, start - end}  # onwards, or back to the start of the segment
    for wiring in (plain, looped):
        assert 0 <= len(wiring.decoder) - len(wiring.encoder) <= 1
        assert wiring.skips == len(wiring.encoder)
