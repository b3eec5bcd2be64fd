"""Where the bits go: a validation score taken apart by document, position and token.

Every function is about the n - 1 targets of a stream of n tokens: target i is token i + 1. Sums over all parts are the
score again: BPB = sum of bits / sum of bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pgolf.data.byte_table import CASE_OPERATORS, SPACE
from pgolf.data.shards import BOS

CLASSES = (
    "word, lower case", "Word, capitalised", "inside a word", "number", "punctuation", "white space", "single byte",
    "case operator", "start of a document",
)  # fmt: skip
"""What a target can be, in the order of the pictures."""
INSIDE = "inside a word"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A scored validation stream."""

    tokens: NDArray[np.uint16]
    """[n]"""
    sizes: NDArray[np.integer]
    """Bytes of text of each token [n]; 0 for BOS."""
    losses: NDArray[np.float32]
    """Nats of each target [n - 1]."""

    @property
    def bits(self) -> NDArray[np.float64]:
        """Bits of each target [n - 1]."""
        return self.losses.astype(np.float64) / math.log(2)

    @property
    def documents(self) -> NDArray[np.int64]:
        """The document of each target [n - 1]; a BOS belongs to the one that it starts."""
        return np.cumsum(self.tokens == BOS)[1:] - 1

    @property
    def bpb(self) -> float:
        """Bits per byte of the whole stream."""
        return float(self.bits.sum() / self.sizes[1:].sum(dtype=np.int64))


class Part(NamedTuple):
    """Targets that have something in common."""

    label: str
    bits: float
    bytes: int
    targets: int

    @property
    def bpb(self) -> float:
        """Bits per byte of these targets; NaN where they hold no text."""
        return self.bits / self.bytes if self.bytes else math.nan


def parts(scored: Scored, labels: NDArray[np.integer], names: Sequence[str]) -> list[Part]:
    """The targets by label [n - 1], an index into `names`; labels without a target are left out."""
    bits = np.bincount(labels, scored.bits, len(names))
    sizes = np.bincount(labels, scored.sizes[1:], len(names))
    counts = np.bincount(labels, minlength=len(names))
    return [Part(name, float(bits[i]), int(sizes[i]), int(counts[i])) for i, name in enumerate(names) if counts[i]]


def by_source(scored: Scored, sources: Sequence[str]) -> list[Part]:
    """By the source of each document, the hardest first."""
    names = sorted(set(sources))
    index = np.array([names.index(source) for source in sources])
    return sorted(parts(scored, index[scored.documents], names), key=lambda part: -part.bpb)


def by_length(scored: Scored) -> list[Part]:
    """By the bytes of the document, in powers of two."""
    lengths = document_bytes(scored)
    return _doublings(scored, lengths[scored.documents])


def by_position(scored: Scored, least: int = 32) -> list[Part]:
    """By the bytes of the same document before the target, in powers of two from `least` on."""
    before = np.cumsum(scored.sizes, dtype=np.int64)[:-1]
    starts = np.flatnonzero(scored.tokens == BOS)
    offset = np.concatenate([[0], np.cumsum(scored.sizes, dtype=np.int64)])[starts]
    return _doublings(scored, np.maximum(before - offset[scored.documents], 0), least)


def by_class(scored: Scored, vocabulary: "Vocabulary") -> list[Part]:
    """By the class of the target; letters right after a letter or a digit are inside a word."""
    targets, previous = scored.tokens[1:], scored.tokens[:-1]
    inside = vocabulary.joins[targets] & vocabulary.ends_in_word[previous]
    return parts(scored, np.where(inside, CLASSES.index(INSIDE), vocabulary.classes[targets]), CLASSES)


def document_bytes(scored: Scored) -> NDArray[np.int64]:
    """Bytes of text of every document."""
    return np.bincount(np.cumsum(scored.tokens == BOS) - 1, scored.sizes).astype(np.int64)


def document_bpb(scored: Scored) -> NDArray[np.float64]:
    """Bits per byte of every document; NaN for one without text."""
    count = int(np.count_nonzero(scored.tokens == BOS))
    bits = np.bincount(scored.documents, scored.bits, count)
    sizes = np.bincount(scored.documents, scored.sizes[1:], count)
    with np.errstate(invalid="ignore"):
        bpb: NDArray[np.float64] = np.where(sizes > 0, bits / np.maximum(sizes, 1), math.nan)
    return bpb


class Vocabulary(NamedTuple):
    """What each piece is, arrays over the vocabulary."""

    classes: NDArray[np.int64]
    """Index into `CLASSES`, of a piece that begins a word where it has letters."""
    joins: NDArray[np.bool_]
    """Begins with a letter, without a space."""
    ends_in_word: NDArray[np.bool_]
    """Ends with a letter or a digit."""


def describe(processor: sentencepiece.SentencePieceProcessor) -> Vocabulary:
    """The pieces of a tokenizer."""
    classes, joins, ends = [], [], []
    for index in range(len(processor)):
        piece = processor.id_to_piece(index)
        if processor.is_control(index) or processor.is_unknown(index):
            name = "start of a document"
        else:
            name = "single byte" if processor.is_byte(index) else piece_class(piece)
        ordinary = name not in ("start of a document", "single byte")
        classes.append(CLASSES.index(name))
        joins.append(ordinary and piece[0].isalpha())
        ends.append(ordinary and piece[-1].isalnum())
    return Vocabulary(np.array(classes), np.array(joins), np.array(ends))


def piece_class(piece: str) -> str:
    """The class of an ordinary piece: a number where it has a digit, else what its first letter says."""
    text = piece.replace(SPACE, " ")
    if piece in CASE_OPERATORS:
        return "case operator"
    if any(char.isdigit() for char in text):
        return "number"
    first = next((char for char in text if char.isalpha()), None)
    if first is None:
        return "punctuation" if text.strip() else "white space"
    return "Word, capitalised" if first.isupper() else "word, lower case"


def _doublings(scored: Scored, values: NDArray[np.integer], least: int = 1) -> list[Part]:
    """Parts by [0, least), [least, 2 least), [2 least, 4 least), ..."""
    index = np.zeros(len(values), np.int64)
    large = values >= least
    index[large] = np.floor(np.log2(values[large] / least)).astype(np.int64) + 1
    names = [_span(0 if not i else least << (i - 1), least << i) for i in range(int(index.max()) + 1)]
    return parts(scored, index, names)


def _span(low: int, high: int) -> str:
    return f"{_short(low)}–{_short(high)}"


def _short(value: int) -> str:
    return f"{value >> 20}M" if value >= 1 << 20 else f"{value >> 10}k" if value >= 1 << 10 else str(value)


MOMENTS = 200
"""Of an evaluation, drawn at most."""


class Gain(NamedTuple):
    """What test-time training brought, along the stream and over time."""

    targets: NDArray[np.int64]
    """Ends of equal stretches of the stream."""
    running: NDArray[np.float64]
    """BPB gained on everything up to there."""
    stretch: NDArray[np.float64]
    """BPB gained on the stretch that ends there."""
    seconds: NDArray[np.float64]
    """Moments at which targets had got their losses; empty where nobody noted them."""
    by_then: NDArray[np.float64]
    """BPB gained on everything scored by then, wherever it stands."""


def ttt_gain(
    scored: Scored, unadapted: NDArray[np.float32], clock: NDArray[np.floating] | None, count: int = 40
) -> Gain:
    """Gain over the same windows without adaptation, `unadapted` [n - 1] nats.

    `clock` [n - 1]: seconds of evaluation when each target had its loss, where that is known.
    """
    count = min(count, len(unadapted))
    ends = np.linspace(0, len(unadapted), count + 1).round().astype(np.int64)[1:]
    bits, sizes = (unadapted.astype(np.float64) - scored.losses) / math.log(2), scored.sizes[1:]
    gained, text = _running(bits, ends), _running(sizes, ends)
    stretch = np.diff(gained, prepend=0.0) / np.maximum(np.diff(text, prepend=0.0), 1.0)
    seconds = by_then = np.empty(0)
    if clock is not None:
        order = np.argsort(clock, kind="stable")
        done = np.flatnonzero(np.diff(clock[order], append=np.inf)) + 1  # how many, when each batch ended
        done = done[np.linspace(0, len(done) - 1, min(MOMENTS, len(done))).round().astype(np.int64)]
        seconds = clock[order][done - 1].astype(np.float64)
        by_then = _running(bits[order], done) / np.maximum(_running(sizes[order], done), 1.0)
    return Gain(ends, gained / np.maximum(text, 1.0), stretch, seconds, by_then)


def _running(values: NDArray[Any], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.cumsum(values, dtype=np.float64)[ends - 1]
    return found


def ttt_by_position(scored: Scored, unadapted: NDArray[np.float32]) -> list[tuple[str, float]]:
    """BPB gained by how much of the document was read before; stretches without text are left out."""
    before = Scored(tokens=scored.tokens, sizes=scored.sizes, losses=unadapted)
    pairs = zip(by_position(before), by_position(scored), strict=True)
    return [(old.label, old.bpb - new.bpb) for old, new in pairs if old.bytes]
