"""A score taken apart: against a loop over the targets, and the parts sum to the score again."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shards import BOS
from pgolf.report.breakdown import (
    CLASSES,
    MOMENTS,
    Scored,
    Vocabulary,
    by_class,
    by_length,
    by_position,
    by_source,
    describe,
    document_bpb,
    document_bytes,
    piece_class,
    ttt_by_position,
    ttt_gain,
)


def stream(seed: int, documents: int = 12) -> Scored:
    """Documents of 0 to 60 tokens of 0 to 9 bytes."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 60, documents)
    tokens = np.concatenate([[BOS, *random.integers(3, 20, length)] for length in lengths]).astype(np.uint16)
    sizes = np.where(tokens == BOS, 0, random.integers(0, 10, len(tokens))).astype(np.uint16)
    return Scored(tokens=tokens, sizes=sizes, losses=random.random(len(tokens) - 1).astype(np.float32) * 9)


def walked(scored: Scored) -> list[tuple[int, int, float, int]]:
    """Document, bytes read before it, bits and bytes of each target, one by one."""
    rows, number, read = [], 0, int(scored.sizes[0])
    for token, size, loss in zip(scored.tokens[1:], scored.sizes[1:], scored.losses, strict=True):
        if token == BOS:
            number, read = number + 1, 0
        rows.append((number, read, float(loss) / math.log(2), int(size)))
        read += int(size)
    return rows


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_parts_sum_to_the_score(seed: int) -> None:
    scored = stream(seed)
    count = int((scored.tokens == BOS).sum())
    vocabulary = Vocabulary(np.arange(20) % len(CLASSES), np.arange(20) % 2 == 0, np.arange(20) % 3 == 0)
    sources = ["a" if index % 3 else "b" for index in range(count)]
    for found in (by_source(scored, sources), by_length(scored), by_position(scored), by_class(scored, vocabulary)):
        assert sum(part.targets for part in found) == len(scored.losses)
        assert sum(part.bytes for part in found) == int(scored.sizes[1:].sum())
        assert sum(part.bits for part in found) == pytest.approx(scored.bpb * int(scored.sizes[1:].sum()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_documents_and_positions_are_those_of_a_walk(seed: int) -> None:
    scored = stream(seed)
    rows = walked(scored)
    count = int((scored.tokens == BOS).sum())
    sizes = [sum(size for number, _, _, size in rows if number == index) for index in range(count)]
    bits = [sum(value for number, _, value, _ in rows if number == index) for index in range(count)]
    assert document_bytes(scored).tolist() == sizes
    for index, value in enumerate(document_bpb(scored)):
        assert math.isnan(value) if not sizes[index] else value == pytest.approx(bits[index] / sizes[index])
    edges = {"0–32": (0, 32), "32–64": (32, 64), "64–128": (64, 128), "128–256": (128, 256), "256–512": (256, 512)}
    for part in by_position(scored):
        low, high = edges[part.label]
        inside = [(value, size) for _, read, value, size in rows if low <= read < high]
        assert (part.targets, part.bytes) == (len(inside), sum(size for _, size in inside))
        assert part.bits == pytest.approx(sum(value for value, _ in inside))
    for part in by_length(scored):
        low, high = (int(edge) for edge in part.label.split("–"))
        assert part.targets == sum(low <= sizes[number] < high for number, *_ in rows)


def test_sources_are_sorted_by_difficulty() -> None:
    tokens = np.array([BOS, 5, 5, BOS, 5, 5, BOS, 5], np.uint16)
    losses = np.array([1, 1, 0, 4, 4, 0, 1], np.float32)
    scored = Scored(tokens=tokens, sizes=np.where(tokens == BOS, 0, 2), losses=losses)
    hard, easy = by_source(scored, ["easy", "hard", "easy"])
    assert (hard.label, easy.label) == ("hard", "easy")
    assert hard.bpb == pytest.approx(8 / math.log(2) / 4)
    assert easy.bpb == pytest.approx(3 / math.log(2) / 6)


PIECES = {
    "▁the": "word, lower case", "▁The": "Word, capitalised", "ing": "word, lower case", "▁1": "number",
    "a1": "number", "▁(": "punctuation", "’": "punctuation", "▁": "white space", "▁▁\n": "white space",
    "\ue001": "case operator", "▁“Yes": "Word, capitalised", "été": "word, lower case",
}  # fmt: skip


@pytest.mark.parametrize(("piece", "expected"), PIECES.items())
def test_pieces_have_classes(piece: str, expected: str) -> None:
    assert piece_class(piece) == expected


def test_letters_after_letters_are_inside_a_word() -> None:
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "<0xC3>", "▁the", "se", ".", "▁", "2"]

    class Processor:
        id_to_piece = staticmethod(pieces.__getitem__)
        is_control = staticmethod(lambda index: index < 3)
        is_unknown = staticmethod(lambda index: index == 3)
        is_byte = staticmethod(lambda index: index == 4)

        def __len__(self) -> int:
            return len(pieces)

    vocabulary = describe(Processor())
    tokens = np.array([BOS, 6, 6, 7, 6, 5, 6, 9, 6, 8, 6, 4, 6, BOS], np.uint16)
    scored = Scored(tokens=tokens, sizes=np.ones(len(tokens), np.int64), losses=np.ones(len(tokens) - 1, np.float32))
    found = {part.label: part.targets for part in by_class(scored, vocabulary)}
    # "se" after BOS, ".", "▁" and a byte begins a word; after "se", "the" and "2" it is inside one
    assert found == {"word, lower case": 5, "inside a word": 3, "punctuation": 1, "number": 1, "white space": 1,
                     "single byte": 1, "start of a document": 1}  # fmt: skip


def test_the_gain_of_the_whole_stream_is_the_difference_of_the_scores() -> None:
    scored = stream(3)
    harder = (scored.losses + np.linspace(0, 0.2, len(scored.losses))).astype(np.float32)
    before = Scored(tokens=scored.tokens, sizes=scored.sizes, losses=harder)
    clock = np.linspace(10.0, 40.0, len(harder))
    gain = ttt_gain(scored, harder, clock, count=7)
    assert gain.running[-1] == pytest.approx(before.bpb - scored.bpb)
    assert gain.targets[-1] == len(scored.losses)
    assert gain.seconds[-1] == 40.0
    assert (np.diff(gain.seconds) > 0).all()
    third = len(harder) // 3
    batches = np.repeat([9.0, 3.0, 6.0], [third, third, len(harder) - 2 * third])  # the middle is scored first
    for noted, moments in ((clock, MOMENTS), (batches, 3)):
        timed = ttt_gain(scored, harder, noted, count=7)
        assert len(timed.seconds) == moments
        for when, gained in zip(timed.seconds, timed.by_then, strict=True):
            then = noted <= when
            rise = (harder[then].astype(float) - scored.losses[then]).sum() / np.log(2)
            assert gained == pytest.approx(rise / scored.sizes[1:][then].sum())
    text = np.diff(np.cumsum(scored.sizes[1:])[gain.targets - 1], prepend=0)
    assert (gain.stretch * text).sum() / text.sum() == pytest.approx(gain.running[-1])
    assert len(ttt_gain(scored, harder, None).seconds) == 0
    weights = {part.label: part.bytes for part in by_position(scored)}
    by_place = ttt_by_position(scored, harder)
    assert sum(value * weights[label] for label, value in by_place) / sum(weights.values()) == pytest.approx(
        gain.running[-1]
    )
