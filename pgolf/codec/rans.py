"""Interleaved range ANS in numpy: a few hundred lanes advance in one call (after Duda's rANS, Giesen's interleaving).

A lane's state lies in 2^32..2^48. To encode the interval [a, a + f) of 2^24, a state x >= f 2^24 first puts its lowest
16 bits out, twice where f < 2^8 asks for it, then becomes (x // f) 2^24 + a + x % f. That x // f is at least 2^8
keeps the rounding loss below 0.0001 bits per symbol. The decoder inverts this, last symbol first, so the encoder keeps
all intervals and codes them backwards. Symbol i of a call belongs to lane i modulo the width of the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.gaussian import BITS, TOTAL

Array = np.ndarray[Any, np.dtype[Any]]

WORD = 16
FLOOR = 1 << 32
"""Least state; an encoder begins with it, or up to 2^32 above it."""
STATE_BYTES = 6
LANES = 2048
"""Most lanes of a stream; each costs about 2 bytes, and fewer are slower."""


class Finder(Protocol):
    """Inverse of `interval` for the symbols of one call."""

    def __call__(self, part: slice, points: Array, /) -> tuple[Array, Array, Array]:
        """For points of the call's part: symbols, distance of the points from their intervals' start, widths."""


class Distribution(Protocol):
    """What symbols are coded with: `pgolf.codec.gaussian.Alphabet` or `Uniform`."""

    def interval(self, symbols: Array, mean: Array, inverse: Array) -> tuple[Array, Array]:
        """First point and width of each symbol's interval in 0..2^24."""

    def finder(self, mean: Array, inverse: Array) -> Finder:
        """The inverse of `interval`."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Whole numbers below `count` (at most 2^24), all equally likely."""

    count: int

    def interval(self, symbols: Array, mean: Array, inverse: Array) -> tuple[Array, Array]:
        """Symbol v begins at the whole part of v 2^24 / count; mean and inverse mean nothing."""
        low = symbols * TOTAL // self.count
        return low, (symbols + 1) * TOTAL // self.count - low

    def finder(self, mean: Array, inverse: Array) -> Finder:
        """The inverse of `interval`."""

        def find(part: slice, points: Array, /) -> tuple[Array, Array, Array]:
            symbols = ((points + 1) * self.count - 1) // TOTAL
            low, width = self.interval(symbols, mean, inverse)
            return symbols, points - low, width

        return find


def flat(count: int) -> tuple[Array, Array]:
    """Mean and inverse for `count` symbols of a distribution that does without them."""
    return np.zeros(count), np.ones(count)


class Coder(Protocol):
    """Either end of a stream: models are written once and run at both."""

    def code(self, alphabet: Distribution, symbols: Array, mean: Array, inverse: Array) -> Array:
        """Pass symbols (1-D intp) through; a decoder ignores the given ones and returns those of the stream."""


def pieces(count: int, lanes: int) -> list[slice]:
    """Cut a call of `count` symbols into the fewest steps of at most `lanes`, of nearly equal size."""
    steps = -(-count // lanes)
    return [slice(count * i // steps, count * (i + 1) // steps) for i in range(steps)]


class Encoder:
    """Collects intervals; `finish` turns them into words and the lanes' states."""

    def __init__(self, lanes: int = LANES, intervals: Sequence[tuple[Array, Array]] = ()) -> None:
        self.lanes = lanes
        self.intervals = list(intervals)

    def code(self, alphabet: Distribution, symbols: Array, mean: Array, inverse: Array) -> Array:
        """Take symbols with their means (1/256) and inverse deviations."""
        low, width = alphabet.interval(symbols, mean, inverse)
        self.intervals.append((low.astype(np.uint32), width.astype(np.uint32)))
        return symbols

    def finish(self, state: Array) -> tuple[Array, bytes]:
        """The lanes' states at the end and the 16-bit words, from the states [lanes] that a decoder ends with."""
        state = state.copy()
        words = []
        for low, width in reversed(self.intervals):
            for part in reversed(pieces(len(low), self.lanes)):
                a, f = low[part].astype(np.int64), width[part].astype(np.int64)
                x = state[: len(f)]
                for shift in (WORD, 0):  # lanes that must put out two words are first: they read last
                    if (full := np.flatnonzero(x >> shift >= f << BITS)).size:
                        words.append((x[full] & 0xFFFF).astype("<u2"))
                        x[full] >>= WORD
                quotient = x // f
                state[: len(f)] = (quotient << BITS) + a + x - quotient * f
        return state, b"".join(part.tobytes() for part in reversed(words))


class Decoder:
    """Reads words from front to back, starting with the states that the encoder ended with."""

    def __init__(self, state: Array) -> None:
        self.state = state
        self.open(b"")

    def open(self, words: bytes | memoryview) -> None:
        """Go on with the words of the next group."""
        if len(words) % 2:
            raise CorruptStreamError("the codes are no whole words")
        self.words, self.position = np.frombuffer(words, "<u2").astype(np.int64), 0

    def close(self) -> None:
        """Every word must have been used."""
        if self.position != len(self.words):
            raise CorruptStreamError("words follow the end of the codes")

    def code(self, alphabet: Distribution, symbols: Array, mean: Array, inverse: Array) -> Array:
        """The next symbols; `symbols` says only how many."""
        out = np.empty(len(symbols), np.intp)
        find = alphabet.finder(mean, inverse)
        for part in pieces(len(symbols), len(self.state)):
            x = self.state[: part.stop - part.start]
            out[part], offset, width = find(part, x & (TOTAL - 1))
            x >>= BITS
            x *= width
            x += offset
            empty = (x < FLOOR).nonzero()[0]
            while empty.size:
                end = self.position + empty.size
                if end > len(self.words):
                    raise CorruptStreamError("the codes end too early")
                refilled = x[empty] << WORD | self.words[self.position : end]
                x[empty] = refilled
                self.position = end
                empty = empty[refilled < FLOOR]
        return out
