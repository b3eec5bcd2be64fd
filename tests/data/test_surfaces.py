"""Bytes by surface: the published test vectors, and an independent count from character offsets."""

import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from cased_corpus import VAL, cased_documents, tokenize
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import caseops
from pgolf.data.byte_table import CASE_OPERATORS, byte_table
from pgolf.data.documents import read_documents
from pgolf.data.surfaces import encode_counted, read_pieces
from pgolf.data.tokenizer import encode, load_tokenizer
from pgolf.errors import InputError

TOKENIZERS = Path(os.environ.get("PGOLF_TOKENIZERS", "."))
published = pytest.mark.skipif("PGOLF_TOKENIZERS" not in os.environ, reason="PGOLF_TOKENIZERS names no folder")
offsets = pytest.mark.skipif(
    not hasattr(sentencepiece.SentencePieceProcessor, "EncodeAsOffsetMapping"), reason="sentencepiece before 0.2.3"
)


@pytest.fixture(scope="session")
def processor(tmp_path_factory):
    folder = tokenize(tmp_path_factory.mktemp("caseops"), case_ops=True)
    return load_tokenizer(folder / "tokenizer.model")


def count(processor, *texts):
    return encode_counted(processor, [caseops.encode(text) for text in texts])


def by_offsets(processor, text):
    """Tokens and bytes of one document from another interface: where in the text each token begins and ends.

    Every character of the transformed text weighs what it stands for in the original: a letter 1, a written operator 0.
    """
    weights, escaped = [], False
    transformed = caseops.encode(text)
    for char in transformed:
        weights.append(0 if char in CASE_OPERATORS and not escaped else len(char.encode()))
        escaped = char == "\ue004" and not escaped
    found = processor.encode(transformed, out_type="offset_mapping")
    return [1, *found["ids"]], [0, *(sum(weights[begin:end]) for begin, end in found["offsets"])]


CHARACTERS = st.sampled_from("aeBkStD .\n\t½…é漢𓀀Ａ\u00a0\u200b\ufeff\u0301\u2581\x01" + "".join(CASE_OPERATORS))


@offsets
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.text(CHARACTERS, max_size=25), min_size=1, max_size=3))
def test_counts_are_those_of_the_character_offsets(processor, texts):
    tokens, counts = count(processor, *texts)
    expected = [by_offsets(processor, text) for text in texts]
    assert tokens.tolist() == [index for ids, _ in expected for index in ids]
    assert counts.tolist() == [value for _, values in expected for value in values]


def test_inner_text_counts_its_raw_bytes_and_edges_nothing(processor):
    for text in [*VAL, "a  b\n\nc", "½ cup… x", "\ue001 \ue004A\ue003"]:
        assert int(count(processor, text)[1].sum()) == len(text.encode())
        assert int(count(processor, f"\ufeff \n{text} \n\n")[1].sum()) == len(text.encode())


def test_tokens_are_those_of_plain_encoding_and_nothing_depends_on_the_batch(processor):
    texts = [caseops.encode(text) for text in cased_documents(5, 20)]
    tokens, counts = encode_counted(processor, texts)
    assert tokens.dtype == counts.dtype == np.uint16
    assert tokens.tolist() == np.concatenate(encode(processor, texts)).tolist()
    alone = [encode_counted(processor, [text]) for text in texts]
    assert counts.tolist() == np.concatenate([values for _, values in alone]).tolist()


def test_empty_documents_are_their_bos(processor):
    tokens, counts = count(processor, "", " \n", "a")
    assert (tokens[:2].tolist(), counts.tolist()) == ([1, 1], [0, 0, 0, 1])


def test_surfaces_agree_with_the_byte_table_of_a_standard_tokenizer(tmp_path):
    """Without normalisation effects, operators and byte pieces both ways to count are one."""
    processor = load_tokenizer(tokenize(tmp_path / "standard") / "tokenizer.model")
    texts = [text for text in VAL if all(char.isascii() and char != "\n" for char in text)]
    assert len(texts) > 15
    tokens, counts = encode_counted(processor, texts)
    assert counts.tolist() == byte_table(processor).counts(tokens).tolist()


def test_a_run_of_spaces_that_no_sidecar_can_hold_is_refused(processor):
    assert int(count(processor, "a" + "\n" * 60_000 + "b")[1].max()) >= 60_000
    with pytest.raises(InputError, match=r"stands for 7000[01] bytes"):
        count(processor, "a" + "\n" * 70_000 + "b")


def field(number, content):
    """One protobuf field: a number, or bytes under 128 long."""
    return bytes([number * 8, content]) if isinstance(content, int) else bytes([number * 8 + 2, len(content)]) + content


def test_messages_are_read_by_the_protobuf_rules(processor):
    piece = field(1, b"x" * 40) + bytes([16, 0b1010_1100, 0b10])  # 300 in two bytes of 7 bits
    message = field(1, b"text") + field(2, piece + field(3, b"ab") + field(4, 1)) + field(2, piece + field(4, 1))
    assert read_pieces(message) == ([300, 300], [b"ab", b""])
    assert read_pieces(b"") == ([], [])
    long = "word " * 2000  # lengths over 127, positions over 16,383
    ids, surfaces = read_pieces(processor.encode(long, out_type="serialized_proto"))
    assert ids == processor.encode(long)
    assert b"".join(surfaces).decode() == long.rstrip()


@pytest.mark.parametrize(
    "message",
    [
        field(3, 1),
        field(2, field(2, 7) + field(1, b"x")),
        field(2, field(1, b"x") + field(3, b"x")),
        field(1, b"text")[:-1],
        (field(1, b"t") + field(2, field(1, b"x") + field(2, 7)))[:-3],
        field(1, b"text") + field(2, b""),
    ],
)
def test_another_form_of_the_message_is_refused(message):
    with pytest.raises(InputError, match=r"sentencepiece .* form that is not known here"):
        read_pieces(message)


def test_surfaces_that_are_not_the_text_are_refused():
    class Other:
        def encode(self, texts, out_type):
            return [field(1, b"ab") + field(2, field(1, b"b") + field(2, 9) + field(3, b"b")) * 2 for _ in texts]

    with pytest.raises(InputError, match="form that is not known"):
        encode_counted(Other(), ["ab"])


@published
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "The NASA iPhone 𓀀 OK",
            "4/0 320/3 8133/1 5/0 5566/3 8136/1 1103/2 6/0 2087/5 8133/1 248/0 155/0 136/0 136/4 8133/1 5/0 1285/2",
        ),
        ("a  b\n\nc", "8136/1 285/3 279/3"),
        ("½ cup… x", "8160/0 234/0 137/0 140/0 8162/2 2419/4 674/3 1898/2"),
    ],
)
def test_published_vectors(text, expected):
    tokens, counts = count(load_tokenizer(TOKENIZERS / "fineweb_8192_bpe_caseops_v1.model"), text)
    assert " ".join(f"{index}/{value}" for index, value in zip(tokens[1:], counts[1:], strict=True)) == expected


@published
def test_published_model_drops_the_edges():
    processor = load_tokenizer(TOKENIZERS / "fineweb_8192_bpe_caseops_v1.model")
    assert int(count(processor, " lead I trail \n")[1].sum()) == 12


@published
@pytest.mark.skipif("PGOLF_BENCH" not in os.environ, reason="PGOLF_BENCH names no folder")
def test_the_benchmark_validation_set_has_its_tokens_and_bytes():
    """Counted elsewhere with the published program: 683,365 tokens, and the bytes of two spans of targets."""
    texts = read_documents(Path(os.environ["PGOLF_BENCH"]) / "val.jsonl.xz")
    tokens, counts = count(load_tokenizer(TOKENIZERS / "fineweb_8192_bpe_caseops_v1.model"), *texts)
    assert (len(tokens), int(counts.sum(dtype=np.int64))) == (683_365, 2_236_252)
    assert int(counts[1 : 524_288 + 1].sum(dtype=np.int64)) == 1_712_905
