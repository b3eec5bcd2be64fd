"""The stream against its ideal length, and lanes and words that do not end where they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.gaussian import TOTAL, integers, scale_of
from pgolf.codec.rans import FLOOR, Decoder, Encoder, Uniform, flat, pieces


def calls(random, count):
    """Symbols with means and scales as models give them: some likely, some hardly possible."""
    for _ in range(count):
        n = int(random.integers(1, 300))
        deviation = np.exp(random.normal(0.5, 1.0, n))
        mean = np.rint(random.normal(0, 200.0, n))
        values = np.rint(mean / 256 + deviation * random.standard_t(3, n)).clip(-31, 31)
        yield integers(-31, 31), values.astype(np.intp) + 31, mean, scale_of(deviation**2)
        yield Uniform(1000), random.integers(0, 1000, n), *flat(n)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([1, 8, 64, 512]))
def test_round_trip_at_the_ideal_length(seed, count, lanes):
    given_calls = list(calls(np.random.default_rng(seed), count))
    encoder = Encoder(lanes)
    for call in given_calls:
        encoder.code(*call)
    bits = -sum(np.log2(width / TOTAL).sum() for _, width in encoder.intervals)
    state, words = encoder.finish(np.full(encoder.lanes, FLOOR))
    assert len(words) * 8 <= bits * 1.001 + 64
    assert len(words) * 8 >= bits - 16 * lanes
    decoder = Decoder(state.copy())
    decoder.open(words)
    for alphabet, symbols, mean, inverse in given_calls:
        assert (decoder.code(alphabet, np.zeros_like(symbols), mean, inverse) == symbols).all()
    decoder.close()
    assert (decoder.state == FLOOR).all()


def test_two_words_for_the_least_likely_symbol():
    encoder = Encoder(1)
    alphabet, symbols = integers(-128, 127), np.array([255, 255, 0, 255])
    for symbol in symbols:
        encoder.code(alphabet, np.array([symbol]), np.zeros(1), scale_of(np.array([0.01])))
    state, words = encoder.finish(np.full(encoder.lanes, FLOOR))
    assert len(words) >= 8
    decoder = Decoder(state)
    decoder.open(words)
    out = [decoder.code(alphabet, np.zeros(1, int), np.zeros(1), scale_of(np.array([0.01])))[0] for _ in symbols]
    assert out == symbols.tolist()


def test_wrong_lengths_are_refused():
    decoder = Decoder(np.full(4, FLOOR))
    with pytest.raises(CorruptStreamError, match="no whole words"):
        decoder.open(b"abc")
    decoder.open(b"abcd")
    with pytest.raises(CorruptStreamError, match="words follow"):
        decoder.close()
    decoder.open(b"")
    with pytest.raises(CorruptStreamError, match="end too early"):
        decoder.code(Uniform(1 << 20), np.zeros(4, int), *flat(4))


@pytest.mark.parametrize(("count", "lanes"), [(1, 8), (8, 8), (9, 8), (1000, 512), (1024, 512), (2817, 512)])
def test_pieces_cover_a_call_in_the_fewest_steps(count, lanes):
    parts = pieces(count, lanes)
    sizes = [part.stop - part.start for part in parts]
    assert [part.start for part in parts] == [0, *np.cumsum(sizes)[:-1].tolist()]
    assert sum(sizes) == count
    assert len(parts) == -(-count // lanes)
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, TOTAL), st.integers(0, TOTAL - 1))
def test_uniform_intervals_hold_their_points(count, point):
    symbols, offset, width = Uniform(count).finder(*flat(1))(slice(0, 1), np.array([point]))
    low, same = Uniform(count).interval(symbols, *flat(1))
    assert 0 <= symbols[0] < count
    assert low + offset == point
    assert 0 <= offset[0] < width[0] == same[0]
