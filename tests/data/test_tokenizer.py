import random
import unicodedata

import numpy as np
import pytest

from pgolf.data.config import TokenizeConfig
from pgolf.data.tokenizer import encode, load_tokenizer, parse_tokenizer, train_tokenizer
from pgolf.errors import InputError

CONFIG = TokenizeConfig(vocab_size=320)


def documents(seed, count=120):
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def model():
    return train_tokenizer(documents(0), CONFIG)


@pytest.fixture(scope="session")
def processor(model):
    return parse_tokenizer(model, "test")


def test_id_layout_is_the_challenges(processor):
    assert len(processor) == 320
    assert [processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()] == [0, 1, 2, 3]
    assert [processor.id_to_piece(4 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert all(processor.is_byte(4 + byte) for byte in range(256))


def test_pieces_are_merges_in_order(processor):
    """Byte-pair encoding scores its i-th merge -i, and a merged piece joins two pieces that were there before."""
    learned = [(processor.get_score(index), processor.id_to_piece(index)) for index in range(260, 320)]
    assert [score for score, _ in learned] == [-float(index) for index in range(60)]
    known = {piece for _, piece in learned if len(piece) == 1}
    for piece in (piece for _, piece in learned if len(piece) > 1):
        assert any(piece[:cut] in known and piece[cut:] in known for cut in range(1, len(piece)))
        known.add(piece)


def test_a_rare_character_falls_back_to_its_bytes():
    """Coverage 0.999: the rarest characters, together under one in a thousand, get no piece."""
    model = train_tokenizer([*documents(0), "漢"], CONFIG)
    pieces = parse_tokenizer(model, "test").encode("漢", out_type=str)
    assert pieces == [f"<0x{byte:02X}>" for byte in "漢".encode()]


def test_training_is_deterministic(model):
    assert train_tokenizer(iter(documents(0)), CONFIG) == model
    assert train_tokenizer(documents(1), CONFIG) != model


def test_no_piece_mixes_digits():
    digits = train_tokenizer([f"{text} 2024 2024 2024" for text in documents(0)], TokenizeConfig(vocab_size=330))
    pieces = parse_tokenizer(digits, "test").encode("2024", out_type=str)
    assert pieces == ["2", "0", "2", "4"]


def test_cap_takes_the_first_documents(model):
    capped = TokenizeConfig(vocab_size=320, tokenizer_train_docs=120)
    assert train_tokenizer(documents(0) + documents(1), capped) == model


def test_nul_is_a_space_and_empty_documents_are_dropped(model):
    spoiled = [f"\0 {text.replace(' ', chr(0))}\n" for text in documents(0)]
    assert train_tokenizer(["", " \n", *spoiled, "\0"], CONFIG) == model


def test_documents_start_with_bos_and_never_end_with_eos(processor):
    texts = [*documents(2), "", "<s> </s>"]
    for text, ids in zip(texts, encode(processor, texts), strict=True):
        assert ids.dtype == np.uint16
        assert ids[0] == 1
        assert not np.isin(ids[1:], [0, 1, 2, 3]).any()
        assert processor.decode(ids[1:].tolist()) == text


def test_encoding_decodes_to_the_normalised_text(processor):
    text = "  \ufeffa½ b…\n\nc 𓀀  "
    (ids,) = encode(processor, [text])
    expected = " ".join(unicodedata.normalize("NFKC", text.replace("\ufeff", "")).split())
    assert processor.decode(ids[1:].tolist()) == expected


def test_corpus_too_small_for_the_vocabulary_says_what_would_fit():
    with pytest.raises(InputError, match=r"`tokenize.vocab_size` is 5000.*give only \d+ pieces.*lower it"):
        train_tokenizer(documents(0)[:3], TokenizeConfig(vocab_size=5000))


def test_vocabulary_too_small_for_the_characters_says_raise():
    with pytest.raises(InputError, match=r"`tokenize.vocab_size` is 262.*raise it"):
        train_tokenizer(documents(0), TokenizeConfig(vocab_size=262))


@pytest.mark.parametrize("texts", [[], ["", "  "], ["a" * 5000]])
def test_no_usable_document_is_named(texts):
    with pytest.raises(InputError, match="no training document can train the tokenizer"):
        train_tokenizer(texts, CONFIG)


def test_an_error_of_the_documents_passes_through_the_trainer():
    def broken():
        yield from documents(0)
        raise InputError("line 7 is not JSON")

    with pytest.raises(InputError, match=r"^line 7 is not JSON$"):
        train_tokenizer(broken(), CONFIG)


def test_load(tmp_path, model):
    path = tmp_path / "tokenizer.model"
    with pytest.raises(InputError, match=r"tokenizer\.model is missing"):
        load_tokenizer(path)
    for damaged in (b"", b"abc", model[:100], model[: len(model) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"tokenizer\.model is not a SentencePiece model or is damaged"):
            load_tokenizer(path)
    path.write_bytes(model)
    assert len(load_tokenizer(path)) == 320
