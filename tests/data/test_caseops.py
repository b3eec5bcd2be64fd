"""The transform against a character-by-character twin, its inverse, and every text that is none of its own."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.byte_table import CASE_OPERATORS
from pgolf.data.caseops import ALLCAPS, CAPNEXT, ESC, TITLE, decode, encode, surface_bytes
from pgolf.errors import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
NAMES = {"T": TITLE, "A": ALLCAPS, "C": CAPNEXT, "E": ESC}


def ops(text):
    """<T>the -> TITLE the."""
    return re.sub("<([TACE])>", lambda match: NAMES[match[1]], text)


def slow_encode(text):
    """The rules one by one, left to right."""
    out, at = "", 0
    while at < len(text):
        end = at
        while end < len(text) and text[end] in LETTERS:
            end += 1
        word = text[at:end]
        if not word:
            out += (ESC if text[at] in CASE_OPERATORS else "") + text[at]
            end = at + 1
        elif word == word.lower():
            out += word
        elif len(word) >= 2 and word == word.upper():
            out += ALLCAPS + word.lower()
        elif len(word) >= 2 and word[0] != word[0].lower() and word[1:] == word[1:].lower():
            out += TITLE + word.lower()
        else:
            for place, letter in enumerate(word):
                if letter != letter.lower():
                    out += CAPNEXT if place else TITLE
                out += letter.lower()
        at = end
    return out


def test_operators_are_the_published_ones():
    assert [ord(operator) for operator in CASE_OPERATORS] == [0xE001, 0xE002, 0xE003, 0xE004]
    assert (TITLE, ALLCAPS, CAPNEXT, ESC) == CASE_OPERATORS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The NASA Launch", "<T>the <A>nasa <T>launch"),
        ("iPhone", "i<C>phone"),
        ("OpenAI", "<T>open<C>a<C>i"),
        ("A", "<T>a"),
        ("McDonald's", "<T>mc<C>donald's"),
        ("I'M", "<T>i'<T>m"),
        ("ABc aBC", "<T>a<C>bc a<C>b<C>c"),
        ("A1B UTF8", "<T>a1<T>b <A>utf8"),
        ("ÉCOLE École", "É<A>cole École"),
        ("\ue001\ue004x", "<E>\ue001<E>\ue004x"),
        ("\u212a", "\u212a"),  # the Kelvin sign is upper case, but no ASCII letter
        ("", ""),
    ],
)
def test_examples(text, expected):
    assert encode(text) == ops(expected) == slow_encode(text)
    assert decode(ops(expected)) == text


CASED = st.text(
    st.sampled_from("aBcD e.É1ß\n𓀀" + "".join(CASE_OPERATORS) + "\ue000\ue005\u0131\u0130\u212a"), max_size=30
)


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(st.characters(exclude_categories=())), CASED))
def test_decode_undoes_encode_and_encode_is_its_slow_twin(text):
    """For any string, lone surrogates included, the operators and neighbours of theirs."""
    transformed = encode(text)
    assert transformed == slow_encode(text)
    assert decode(transformed) == text
    assert not re.search("[A-Z]", transformed)


def test_round_trip_of_many_random_strings():
    rng = random.Random(0)
    alphabet = [*LETTERS, *" .'-1é漢𓀀\n", *CASE_OPERATORS]
    for _ in range(100_000):
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 10)))
        assert decode(encode(text)) == text


def test_lower_case_text_is_returned_as_it_is():
    text = "nothing to write: é 漢 1\n"
    assert encode(text) is text


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a <T><T>b", 3, "TITLE .* after TITLE"),
        ("<A><T>b", 1, "TITLE .* after ALLCAPS"),
        ("<C><C>b", 1, "CAPNEXT .* after CAPNEXT"),
        ("<T><E><E>", 1, "ESC .* after TITLE"),
        ("ab<T>c", 2, "TITLE .* inside a word"),
        ("<A>ab<A>c", 3, "ALLCAPS .* inside a word"),
        ("x <T>1", 2, "TITLE .* without a letter"),
        ("a<C> b", 1, "CAPNEXT .* without a letter"),
        ("<A>é", 0, "ALLCAPS .* without a letter"),
        ("abc <T>", 4, "TITLE .* at the end"),
        ("abc<E>", 3, "ESC .* at the end"),
    ],
)
def test_what_encode_never_writes_is_refused_with_its_position(text, position, reason):
    with pytest.raises(InputError, match=rf"case operator {reason}") as error:
        decode(ops(text))
    assert f"at character {position} " in str(error.value)


def test_an_escaped_character_ends_the_word():
    assert decode(ops("<A>ab<E><T>cd")) == f"AB{TITLE}cd"
    assert decode(ops("<A>ab <T>cd")) == "AB Cd"


PARTS = st.lists(st.integers(0, 8), max_size=12)


@settings(max_examples=200, deadline=None)
@given(text=CASED, cuts=PARTS)
def test_surfaces_share_out_the_bytes_of_the_text(text, cuts):
    """However the transformed text is cut, also inside an escape, the counts add up to the original's UTF-8."""
    transformed = encode(text)
    surfaces, at = [], 0
    for length in cuts:
        surfaces.append(transformed[at : at + length].encode())
        at += length
    surfaces.append(transformed[at:].encode())
    counts = surface_bytes(surfaces)
    assert len(counts) == len(surfaces)
    assert sum(counts) == len(text.encode())


def test_surface_counts_by_hand():
    text = ops("<T>the <A>ok<E><C>é ").encode()
    parts = [ops("<T>"), "the", " ", ops("<A>"), "", "ok", ops("<E>"), "", ops("<C>"), "é "]
    assert "".join(parts).encode() == text
    assert surface_bytes(part.encode() for part in parts) == [0, 3, 1, 0, 0, 2, 0, 0, 3, 3]
    assert surface_bytes(["\ue000".encode(), "\ue005a".encode()]) == [3, 4]  # neighbours are no operators
