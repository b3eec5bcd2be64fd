"""Our entropy coder: the models of `models` at both ends of one interleaved rANS stream.

The lanes run through all coded groups, so that their states are paid for once: they stand before the words of the first
group in coding order. The words of each group are a stream of the container. `TAIL`, which no other group is predicted
from, has a few lanes of its own and is decoded last: its first bytes travel in the states that the other lanes end with
(32 bits of each are free to choose), which pays for most of their cost.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.gaussian import BITS
from pgolf.codec.layout import DTYPES, Array
from pgolf.codec.models import Groups, Models, Tensors, codable, coding_order, symbols
from pgolf.codec.rans import FLOOR, LANES, STATE_BYTES, Decoder, Encoder

LEAST_LANES = 8
TAIL, TAIL_LANES = "small", 16
PAYLOAD = 4
"""Bytes that a lane carries."""
SYMBOLS_PER_LANE = 1 << 14

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Coded:
    """A group's intervals before they become words."""

    intervals: list[tuple[Array, Array]]
    estimate: int
    """Bytes, without the lanes' states."""


def lanes_for(count: int) -> int:
    """Lanes of a stream of so many symbols in all; a power of two."""
    return max(LEAST_LANES, min(LANES, 1 << (count // SYMBOLS_PER_LANE).bit_length()))


def model_groups(
    groups: Groups, tensors: Mapping[str, Array], heads: int, report: Report, trellis: bool = True
) -> dict[str, Coded]:
    """Run the models over every group that has one; `trellis`: codes that obey one are recognised."""
    coder = Encoder()
    models = Models(coder, groups, dict(tensors), heads, encoding=True, trellis=trellis)
    coded = {}
    for group in coding_order(groups):
        if codable(groups[group]):
            report(f"modelling {group}")
            models.code(group)
            bits = sum(BITS * len(width) - float(np.log2(width).sum()) for _, width in coder.intervals)
            coded[group] = Coded(coder.intervals, int(bits / 8) + 2)
            coder.intervals = []
    return coded


def encode(coded: Mapping[str, Coded], groups: Groups, report: Report) -> dict[str, bytes]:
    """The streams of the groups in `coded`."""
    names = [group for group in coding_order(groups) if group in coded and group != TAIL]
    lanes = lanes_for(sum(symbols(groups[group]) for group in names))
    streams: dict[str, bytes] = {}
    state = np.full(lanes, FLOOR, np.int64)
    if TAIL in coded:
        report(f"range coding {TAIL}")
        last, words = Encoder(TAIL_LANES, coded[TAIL].intervals).finish(np.full(TAIL_LANES, FLOOR, np.int64))
        streams[TAIL] = _state_bytes(last) + words
        if names and len(streams[TAIL]) >= PAYLOAD * lanes and any(streams[TAIL][: PAYLOAD * lanes]):
            state += np.frombuffer(streams[TAIL], "<u4", lanes)
            streams[TAIL] = streams[TAIL][PAYLOAD * lanes :]
    for group in reversed(names):
        report(f"range coding {group}")
        state, streams[group] = Encoder(lanes, coded[group].intervals).finish(state)
    if names:
        streams[names[0]] = _state_bytes(state) + streams[names[0]]
    return streams


def decode(
    streams: Mapping[str, bytes | memoryview], groups: Groups, known: Mapping[str, Array], heads: int, report: Report
) -> Tensors:
    """The tensors of the groups in `streams`; `known` are those of the others.

    Raises CorruptStreamError for streams that do not decode to their very end and for groups without a model.
    """
    names = [group for group in coding_order(groups) if group in streams and group != TAIL]
    tensors: Tensors = dict(known)
    for group in streams:
        if not codable(groups[group]):
            raise CorruptStreamError("there is no model for the stream's tensors")
        tensors |= {entry.key: np.zeros(entry.shape, DTYPES[entry.dtype]) for entry in groups[group]}
    payload = b""
    if names:
        lanes = lanes_for(sum(symbols(groups[name]) for name in names))
        end = _run(lanes, {name: streams[name] for name in names}, groups, tensors, heads, report) - FLOOR
        if (end >> 32).any() or (TAIL not in streams and end.any()):
            raise CorruptStreamError("the codes do not end where they began")
        payload = end.astype("<u4").tobytes() if end.any() else b""
    if TAIL in streams:
        tail = {TAIL: payload + bytes(streams[TAIL])}
        if (_run(TAIL_LANES, tail, groups, tensors, heads, report) != FLOOR).any():
            raise CorruptStreamError("the codes do not end where they began")
    return {entry.key: tensors[entry.key] for group in streams for entry in groups[group]}


def _run(
    lanes: int,
    streams: Mapping[str, bytes | memoryview],
    groups: Groups,
    tensors: Tensors,
    heads: int,
    report: Report,
) -> Array:
    """Decode these groups with one set of lanes, whose states stand first; returns the states at the end."""
    coder: Decoder | None = None
    for group, words in streams.items():
        report(f"decoding {group}")
        if coder is None:
            if len(words) < lanes * STATE_BYTES:
                raise CorruptStreamError("the codes begin with fewer states than there are lanes")
            low = np.frombuffer(words, "<u4", lanes).astype(np.int64)
            coder = Decoder(low | np.frombuffer(words, "<u2", lanes, 4 * lanes).astype(np.int64) << 32)
            words = words[lanes * STATE_BYTES :]
        coder.open(words)
        Models(coder, groups, tensors, heads, encoding=False).code(group)
        coder.close()
    assert coder is not None
    return coder.state


def _state_bytes(state: Array) -> bytes:
    """The low 32 bits of all lanes, then the high 16."""
    return (state & 0xFFFFFFFF).astype("<u4").tobytes() + (state >> 32).astype("<u2").tobytes()
