import io

import numpy as np
import pytest
import sentencepiece
from cased_corpus import TRAIN, tokenize

from pgolf.data.byte_table import CASE_OPERATORS, byte_table
from pgolf.data.sidecar import CASEOPS, NONE, check_sidecar, has_case_operators
from pgolf.data.surfaces import encode_counted
from pgolf.data.tokenizer import OPTIONS, encode, load_tokenizer, parse_tokenizer
from pgolf.errors import InputError


@pytest.fixture(scope="session")
def cased(tmp_path_factory):
    return load_tokenizer(tokenize(tmp_path_factory.mktemp("caseops"), case_ops=True) / "tokenizer.model")


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return load_tokenizer(tokenize(tmp_path_factory.mktemp("standard")) / "tokenizer.model")


def test_tokenizers_are_told_apart(cased, plain):
    assert has_case_operators(cased)
    assert not has_case_operators(plain)


@pytest.mark.parametrize("symbols", [["#", *CASE_OPERATORS], CASE_OPERATORS[:2], CASE_OPERATORS[::-1]])
def test_operators_at_other_ids_are_refused(symbols):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAIN),
        model_writer=writer,
        vocab_size=360,
        user_defined_symbols=list(symbols),
        **OPTIONS,
    )
    with pytest.raises(InputError, match=r"at other ids than 4 to 7 \(.*U\+E001 at \d"):
        has_case_operators(parse_tokenizer(writer.getvalue(), "test"))


def test_right_sidecars_are_accepted(cased, plain):
    tokens, counts = encode_counted(cased, ["\ue001the \ue004\ue001 \ue004\ue004\ue002ok"])
    assert counts[counts > 1].tolist().count(3) >= 2  # the escaped operators count
    check_sidecar(cased, tokens, counts, CASEOPS)
    tokens = np.concatenate(encode(plain, TRAIN[:5]))
    check_sidecar(plain, tokens, byte_table(plain).counts(tokens).astype(np.uint16), NONE)


def test_one_operator_with_bytes_is_enough_to_refuse(cased):
    tokens, counts = encode_counted(cased, ["\ue001the \ue002ok"])
    for place in np.flatnonzero((tokens >= 4) & (tokens < 8)):
        wrong = counts.copy()
        wrong[place] = 3
        with pytest.raises(InputError, match=r"charges 3 bytes to 2 case operators"):
            check_sidecar(cased, tokens, wrong, CASEOPS)


def test_every_difference_to_the_byte_table_is_refused(plain):
    tokens = np.concatenate(encode(plain, TRAIN[:2]))
    counts = byte_table(plain).counts(tokens)
    for place in (1, len(counts) - 1):
        wrong = counts.copy()
        wrong[place] += 1
        with pytest.raises(
            InputError, match=rf"first difference: token {place}, id {tokens[place]}, has {wrong[place]}"
        ):
            check_sidecar(plain, tokens, wrong, NONE)


def test_bytes_of_bos_are_refused(cased, plain):
    for processor, transform in ((cased, CASEOPS), (plain, NONE)):
        with pytest.raises(InputError, match="charges 2 bytes to BOS"):
            check_sidecar(processor, np.array([1, 300], np.uint16), np.array([2, 1]), transform)


def test_tokenizer_and_transform_must_agree(cased, plain):
    tokens = counts = np.zeros(1, np.uint16)
    with pytest.raises(InputError, match=r"tokenizer has case operators, but .* `transform` 'none'"):
        check_sidecar(cased, tokens, counts, NONE)
    with pytest.raises(InputError, match=r"tokenizer lacks case operators, but .* 'lossless_caps_caseops_v1'"):
        check_sidecar(plain, tokens, counts, CASEOPS)
    with pytest.raises(InputError, match="`transform` is 'rot13'"):
        check_sidecar(plain, tokens, counts, "rot13")
