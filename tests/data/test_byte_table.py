"""The byte table against decode-and-count-UTF-8, and each accounting failure that cost a record."""

import io
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.byte_table import SPACE, byte_table
from pgolf.data.config import TokenizeConfig
from pgolf.data.tokenizer import OPTIONS, encode, parse_tokenizer, train_tokenizer
from pgolf.errors import InputError

BOS = 1


def documents(count=150):
    rng = random.Random(7)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) + " café." for _ in range(count)]


@pytest.fixture(scope="session")
def processor():
    return parse_tokenizer(train_tokenizer(documents(), TokenizeConfig(vocab_size=384)), "test")


@pytest.fixture(scope="session")
def table(processor):
    return byte_table(processor)


def tokens(processor, *texts):
    return np.concatenate(encode(processor, texts))


# Letters of the corpus, others that need byte fallback, and no U+2581 (to SentencePiece it is a space).
WORDS = st.text(st.sampled_from("aeioubdkst.é0%ÄЖ漢𓀀😀"), min_size=1, max_size=8)
NORMAL_TEXT = st.lists(WORDS, min_size=1, max_size=12).map(" ".join).map(lambda s: unicodedata.normalize("NFKC", s))


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(NORMAL_TEXT, min_size=1, max_size=4))
def test_total_is_the_utf8_length_of_text_in_normal_form(processor, table, texts):
    ids = tokens(processor, *texts)
    assert int(table.counts(ids).sum()) == sum(len(text.encode()) for text in texts)


@settings(max_examples=200, deadline=None)
@given(text=NORMAL_TEXT)
def test_each_token_counts_the_bytes_it_decodes_to(processor, table, text):
    (ids,) = encode(processor, [text])
    pieces = [processor.id_to_piece(int(index)) for index in ids[1:]]
    decoded = [bytes([int(p[3:5], 16)]) if p.startswith("<0x") else p.replace(SPACE, " ").encode() for p in pieces]
    assert b"".join(decoded) == text.encode()
    assert table.counts(ids).tolist() == [0, *map(len, decoded)]


def test_counts_follow_the_formula_for_every_pair(processor, table):
    """Slow twin over all pairs of 384 x 384 ids, from the processor's own answers."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, len(processor), 5000).astype(np.uint16)
    counts = table.counts(ids)
    for previous, target, count in zip(ids[:-1].tolist(), ids[1:].tolist(), counts[1:].tolist(), strict=True):
        piece = processor.id_to_piece(target)
        if target < 4:
            expected = 0
        elif target < 260:
            expected = 1
        elif piece.startswith(SPACE):
            expected = len(piece[1:].encode()) + (previous >= 4)
        else:
            expected = len(piece.encode())
        assert count == expected


def test_leading_space_is_counted_once(processor, table):
    text = documents()[0]
    assert int(table.counts(tokens(processor, text)).sum()) == len(text.encode())
    (spaced,) = np.flatnonzero(table.space)[-1:]
    length = len(processor.id_to_piece(int(spaced))[1:].encode())
    assert table.counts(np.array([BOS, spaced, spaced, BOS, spaced])).tolist() == [0, length, length + 1, 0, length]
    assert table.counts(np.array([spaced])).tolist() == [length]  # what came before is not known


def test_byte_piece_counts_one_and_not_its_label(processor, table):
    ids = tokens(processor, "𓀀")
    assert [processor.is_byte(int(index)) for index in ids[1:]] == [True] * 4
    assert table.counts(ids).tolist() == [0, 1, 1, 1, 1]
    assert table.base[4:260].tolist() == [1] * 256


def test_bos_counts_nothing_and_each_document_starts_afresh(processor, table):
    first, second = documents()[:2]
    joined = table.counts(tokens(processor, first, second))
    apart = [table.counts(tokens(processor, text)) for text in (first, second)]
    assert joined.tolist() == np.concatenate(apart).tolist()


@pytest.mark.parametrize(
    ("raw", "counted"),
    [
        ("a ½ b", "a 1⁄2 b"),
        ("a…", "a..."),
        ("a\n\nb", "a b"),
        ("a  b", "a b"),
        ("  a b \n", "a b"),
        ("a\u00a0b", "a b"),
    ],
)
def test_the_normalised_text_is_what_counts(processor, table, raw, counted):
    assert int(table.counts(tokens(processor, raw)).sum()) == len(counted.encode())


def test_tokenizer_without_a_lone_space_piece_is_refused():
    model = train_tokenizer([text.replace(" ", "") for text in documents()], TokenizeConfig(vocab_size=300))
    with pytest.raises(InputError, match="no piece for a single space"):
        byte_table(parse_tokenizer(model, "test"))


def test_case_operators_are_refused():
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents()),
        model_writer=writer,
        vocab_size=384,
        user_defined_symbols=["\ue001", "\ue002", "\ue003", "\ue004"],
        **OPTIONS,
    )
    with pytest.raises(InputError, match=r"token 4 is the case operator U\+E001.*sidecar"):
        byte_table(parse_tokenizer(writer.getvalue(), "test"))


def test_tokens_of_a_larger_vocabulary_are_refused(table):
    assert table.counts(np.array([383], dtype=np.uint16)).size == 1
    with pytest.raises(InputError, match=r"token id 384 is outside the tokenizer's 384 pieces"):
        table.counts(np.array([5, 384], dtype=np.uint16))


def test_no_tokens_count_nothing(table):
    assert table.counts(np.zeros(0, np.uint16)).tolist() == []
