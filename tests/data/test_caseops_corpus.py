"""The tokenize stage with CaseOps."""

import json

import numpy as np
import pytest
from cased_corpus import TRAIN, VAL, tokenize

from pgolf.data import caseops, corpus
from pgolf.data.shards import read_shard, shard_files
from pgolf.data.tokenizer import LONGEST_SENTENCE, load_tokenizer
from pgolf.data.tokens import open_tokens
from pgolf.errors import InputError


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    return tokenize(tmp_path_factory.mktemp("caseops"), case_ops=True)


def joined(folder, split):
    return np.concatenate([read_shard(path) for path in shard_files(folder / "tokens", split)])


def contents(folder):
    files = [*(folder / "tokens").iterdir(), folder / "tokenizer.model"]
    return {path.name: path.read_bytes() for path in files}


def manifest(folder):
    return json.loads((folder / "tokens/manifest.json").read_text())


def test_tokenizer_has_the_published_layout(done):
    processor = load_tokenizer(done / "tokenizer.model")
    pieces = [processor.id_to_piece(index) for index in range(len(processor))]
    assert len(pieces) == 360
    assert pieces[4:8] == ["\ue001", "\ue002", "\ue003", "\ue004"]
    assert pieces[8:264] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert "▁" in pieces
    for piece in pieces[264:]:
        assert not any("A" <= char <= "Z" or "\ue001" <= char <= "\ue004" for char in piece)


def test_an_operator_is_a_token_of_its_own(done):
    processor = load_tokenizer(done / "tokenizer.model")
    pieces = processor.encode(caseops.encode("a The"), out_type=str)
    assert "\ue001" in pieces
    assert pieces[pieces.index("\ue001") - 1] == "▁"


def test_documents_come_back_with_their_capitals(done):
    """Detokenize, undo the transform: the text, up to what SentencePiece itself normalises."""
    processor = load_tokenizer(done / "tokenizer.model")
    for split, texts in (("train", TRAIN), ("val", VAL)):
        tokens = joined(done, split)
        documents = np.split(tokens, np.flatnonzero(tokens == 1))[1:]
        assert len(documents) == len(texts)
        for ids, text in zip(documents, texts, strict=True):
            assert caseops.decode(processor.decode(ids[1:].tolist())) == processor.normalize(text).replace("▁", " ")


def test_sidecar_counts_the_raw_text(done):
    counts = joined(done, "val_bytes")
    assert len(counts) == len(joined(done, "val"))
    assert int(counts.sum()) == manifest(done)["val"]["bytes"] == sum(len(text.encode()) for text in VAL)


def test_what_was_done_to_the_text_is_in_the_manifest(done, tmp_path):
    assert manifest(done)["transform"] == "lossless_caps_caseops_v1"
    assert manifest(tokenize(tmp_path / "plain"))["transform"] == "none"
    assert open_tokens(done / "tokens", done / "tokenizer.model").val_documents == len(VAL)


def test_the_documents_of_the_manifest_are_the_original_ones(done, tmp_path):
    plain = manifest(tokenize(tmp_path / "plain"))
    for split in ("train", "val"):
        for key in ("documents", "documents_sha256"):
            assert manifest(done)[split][key] == plain[split][key]
    assert manifest(done)["val"]["raw_bytes"] == plain["val"]["raw_bytes"]


def test_batches_and_second_runs_give_equal_bytes(done, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 300)
    assert contents(tokenize(tmp_path / "again", case_ops=True)) == contents(done)


def test_validation_documents_are_found_under_their_capitals(done, tmp_path):
    mixed = tokenize(tmp_path / "mixed", train=[VAL[0], *TRAIN, VAL[5]], case_ops=True)
    assert manifest(mixed)["train"]["overlap_documents"] == 2
    assert joined(mixed, "train").tolist() == joined(done, "train").tolist()


def test_a_trained_model_can_be_used_as_a_published_one(done, tmp_path):
    again = tokenize(tmp_path / "again", model=str(done / "tokenizer.model"), case_ops=True)
    assert contents(again) == contents(done)


def test_setting_and_model_must_agree(done, tmp_path):
    plain = tokenize(tmp_path / "plain")
    with pytest.raises(
        InputError, match=r"`tokenize.case_ops` is false, but .* has the case operators: set .* to true"
    ):
        tokenize(tmp_path / "a", model=str(done / "tokenizer.model"))
    with pytest.raises(
        InputError, match=r"`tokenize.case_ops` is true, but .* lacks the case operators: set .* to false"
    ):
        tokenize(tmp_path / "b", model=str(plain / "tokenizer.model"), case_ops=True)
    assert not (tmp_path / "b" / "tokens").exists()


def test_skipped_documents_are_counted_by_what_the_trainer_reads(tmp_path):
    """Operators make a document longer: this one is skipped with CaseOps only."""
    long = "Word " * 800
    assert len(long.encode()) < LONGEST_SENTENCE < len(caseops.encode(long).encode())
    for case_ops in (False, True):
        folder = tokenize(tmp_path / str(case_ops), train=[*TRAIN, long], case_ops=case_ops)
        assert manifest(folder)["train"]["tokenizer_skipped_documents"] == case_ops
