import hashlib
import json
import lzma

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import documents
from pgolf.data.documents import document_hash, read_documents
from pgolf.errors import InputError

PACK = {".jsonl": bytes, ".jsonl.zst": zstandard.ZstdCompressor().compress, ".jsonl.xz": lzma.compress}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def jsonl(texts):
    return b"".join(json.dumps({"text": text, "id": 1}).encode() + b"\n" for text in texts)


@pytest.mark.parametrize("suffix", PACK)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, max_size=20), size=st.integers(1, 50))
def test_documents_come_back_in_order_whatever_the_chunks(tmp_path_factory, suffix, texts, size):
    path = tmp_path_factory.mktemp("documents") / f"a{suffix}"
    path.write_bytes(PACK[suffix](jsonl(texts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "READ_BYTES", size)
        assert list(read_documents(path)) == texts


@pytest.mark.parametrize("suffix", PACK)
def test_last_line_may_lack_its_line_feed(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](jsonl(["one", "two"])[:-1]))
    assert list(read_documents(path)) == ["one", "two"]


def test_several_frames_are_one_stream(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(PACK[".jsonl.zst"](jsonl(["one"])) + PACK[".jsonl.zst"](jsonl(["two"])))
    assert list(read_documents(path)) == ["one", "two"]


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["one"]) + b"broken\n")
    assert next(read_documents(path)) == "one"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"not json", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'["text"]', "has no text"),
        (b'{"txt": "a"}', "has no text"),
        (b'{"text": 3}', "has no text"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_bad_lines_are_named_by_number(tmp_path, line, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(["one", "two"]) + line + b"\n" + jsonl(["four"]))
    with pytest.raises(InputError, match=rf"a\.jsonl, line 3 .*{problem}|a\.jsonl, line 3 {problem}"):
        list(read_documents(path))


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.xz"])
def test_every_truncation_is_damage(tmp_path, suffix):
    whole = PACK[suffix](jsonl(["some words", "and more"]))
    path = tmp_path / f"a{suffix}"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is damaged"):
            list(read_documents(path))


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.xz"])
def test_garbage_is_damage(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"garbage" * 10)
    with pytest.raises(InputError, match="is damaged"):
        list(read_documents(path))


def test_bytes_after_the_last_frame_are_damage(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    for rest in (b"x", b"garbage" * 10):
        path.write_bytes(PACK[".jsonl.zst"](jsonl(["one"])) + rest)
        with pytest.raises(InputError, match="is damaged after line 1"):
            list(read_documents(path))


def test_missing_file_and_unknown_suffix_are_refused_at_the_call(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_documents(tmp_path / "none.jsonl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"must end in \.jsonl, \.jsonl\.zst, \.jsonl\.xz"):
        read_documents(tmp_path / "a.txt")


@given(TEXTS)
def test_hash_is_sha256_of_utf8(text):
    assert document_hash(text) == hashlib.sha256(text.encode("utf-8")).digest()
