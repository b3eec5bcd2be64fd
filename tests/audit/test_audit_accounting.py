"""The books of a run: the recount agrees with honest tokens and finds each way to count them wrongly."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pgolf import paths
from pgolf.audit import accounting
from pgolf.audit.accounting import check_overlap
from pgolf.audit.denominator import check_bytes, check_roundtrip, recount
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.data.shards import write_shard
from pgolf.data.tokenizer import load_tokenizer
from pgolf.data.tokens import Tokens, open_tokens

ODD = ["½ cup…", "two\n\nlines", "𓀀", "café", "a\u00a0 b", "ＡＢ", " lead"]


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(1, 7))) for _ in range(150)]
    some = [" ".join(rng.choice([str.lower, str.title])(w) for w in rng.choices(words, k=25)) for _ in range(count)]
    return [f"{rng.choice(ODD)} {text}" if index % 3 == 0 else text for index, text in enumerate(some)]


def made(folder: Path, case_ops: bool) -> tuple[Tokens, Path]:
    names = {}
    for name, documents in (("train", texts(1, 100)), ("val", texts(2, 30))):
        names[name] = folder / f"{name}.jsonl"
        names[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    data = DataConfig(train=str(names["train"]), val=str(names["val"]))
    config = TokenizeConfig(vocab_size=360, case_ops=case_ops)
    tokenize_corpus(data, config, folder / "tokens", folder / "tokenizer.model")
    return open_tokens(folder / "tokens", folder / "tokenizer.model"), folder


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Path]:
    return made(tmp_path_factory.mktemp("standard"), case_ops=False)


@pytest.fixture(scope="module")
def cased(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokens, Path]:
    return made(tmp_path_factory.mktemp("cased"), case_ops=True)


def verdict(tokens: Tokens, folder: Path, check: str) -> str:
    found = check_bytes(tokens, load_tokenizer(folder / "tokenizer.model"), str(folder / "val.jsonl"))
    return next(f.verdict for f in found if f.check == check)


def spoiled(tokens: Tokens, counts: np.ndarray) -> Tokens:
    return dataclasses.replace(tokens, val_bytes=counts.astype(np.uint16))


def test_the_recount_spells_what_decoding_gives(standard: tuple[Tokens, Path]) -> None:
    tokens, folder = standard
    processor = load_tokenizer(folder / "tokenizer.model")
    parts = np.split(tokens.val, np.flatnonzero(tokens.val == 1))[1:]
    spelled = sum(len(processor.decode(part[1:].tolist()).encode()) for part in parts)
    assert recount(processor, tokens.val) == spelled == int(tokens.val_bytes.sum())


def test_honest_tokens_pass(standard: tuple[Tokens, Path], cased: tuple[Tokens, Path]) -> None:
    assert verdict(*standard, "bytes.recount") == "pass"
    assert verdict(*cased, "bytes.recount") != "fail"
    for made_ in (standard, cased):
        assert verdict(*made_, "bytes.raw") == "pass"
        assert verdict(*made_, "bytes.rho") == "cannot tell"


def test_honest_tokens_decode_to_their_documents(standard: tuple[Tokens, Path], cased: tuple[Tokens, Path]) -> None:
    for tokens, folder in (standard, cased):
        found = check_roundtrip(tokens, load_tokenizer(folder / "tokenizer.model"), str(folder / "val.jsonl"))
        assert found.verdict == "pass", found


@pytest.mark.parametrize(("change", "verdict"), [(str.lower, "fail"), (lambda text: text.replace("½", "1"), None)])
def test_a_tokenizer_that_loses_text(
    standard: tuple[Tokens, Path], tmp_path: Path, change: Callable[[str], str], verdict: str | None
) -> None:
    """The tokens are of the changed text, the documents are the true ones."""
    folder = standard[1]
    for name in ("train", "val"):
        documents = [json.loads(line)["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        lines = [json.dumps({"text": change(text)}) + "\n" for text in documents]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    data = DataConfig(train=str(tmp_path / "train.jsonl"), val=str(tmp_path / "val.jsonl"))
    tokenize_corpus(data, TokenizeConfig(vocab_size=360), tmp_path / "tokens", tmp_path / "tokenizer.model")
    tokens = open_tokens(tmp_path / "tokens", tmp_path / "tokenizer.model")
    found = check_roundtrip(tokens, load_tokenizer(tmp_path / "tokenizer.model"), str(folder / "val.jsonl"))
    assert found.verdict == (verdict or "pass"), "a few characters are no lossy tokenizer"
    assert check_roundtrip(tokens, load_tokenizer(tmp_path / "tokenizer.model"), "gone").verdict == "cannot tell"


def test_operators_by_the_table_are_more_bytes_than_the_documents_have(cased: tuple[Tokens, Path]) -> None:
    tokens, folder = cased
    operators = np.isin(tokens.val, [4, 5, 6, 7])
    assert verdict(spoiled(tokens, tokens.val_bytes + 3 * operators), folder, "bytes.raw") == "fail"
    spaced = np.flatnonzero(tokens.val_bytes)[::200]
    more = tokens.val_bytes.copy()
    more[spaced] += 1
    assert verdict(spoiled(tokens, more), folder, "bytes.raw") == "fail"


def test_a_space_of_three_bytes_is_found_in_the_documents(standard: tuple[Tokens, Path]) -> None:
    tokens, folder = standard
    processor = load_tokenizer(folder / "tokenizer.model")
    spaced = np.array([processor.id_to_piece(int(i)).startswith("▁") for i in tokens.val])
    assert verdict(spoiled(tokens, tokens.val_bytes + 2 * spaced), folder, "bytes.raw") == "fail"


def test_spaces_counted_twice(standard: tuple[Tokens, Path]) -> None:
    tokens, folder = standard
    processor = load_tokenizer(folder / "tokenizer.model")
    spaced = np.array([processor.id_to_piece(int(i)).startswith("▁") for i in tokens.val])
    assert verdict(spoiled(tokens, tokens.val_bytes + spaced), folder, "bytes.recount") == "fail"


def test_byte_pieces_by_their_label(standard: tuple[Tokens, Path]) -> None:
    tokens, folder = standard
    processor = load_tokenizer(folder / "tokenizer.model")
    labels = np.array([5 * processor.is_byte(int(i)) for i in tokens.val])
    assert labels.any()
    assert verdict(spoiled(tokens, tokens.val_bytes + labels), folder, "bytes.recount") == "fail"


def test_operators_charged_by_the_table(cased: tuple[Tokens, Path]) -> None:
    tokens, folder = cased
    operators = np.isin(tokens.val, [4, 5, 6, 7])
    assert operators.any()
    assert verdict(spoiled(tokens, tokens.val_bytes + 3 * operators), folder, "bytes.recount") == "fail"


def test_one_byte_too_many(standard: tuple[Tokens, Path]) -> None:
    tokens, folder = standard
    counts = tokens.val_bytes.copy()
    counts[-1] += 1
    assert verdict(spoiled(tokens, counts), folder, "bytes.recount") == "fail"


def test_other_documents_than_were_tokenized(standard: tuple[Tokens, Path], tmp_path: Path) -> None:
    tokens, folder = standard
    for name in ("val.jsonl", "tokenizer.model"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (tmp_path / "val.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "val.jsonl").write_text("".join(lines[:-1]))
    assert verdict(tokens, tmp_path, "bytes.raw") == "fail"
    texts_ = [json.loads(line)["text"] for line in lines]
    joined = [*texts_[:-2], texts_[-2] + texts_[-1]]  # as many bytes, one document fewer
    (tmp_path / "val.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in joined))
    assert verdict(tokens, tmp_path, "bytes.raw") == "fail"
    (tmp_path / "val.jsonl").unlink()
    assert verdict(tokens, tmp_path, "bytes.raw") == "cannot tell"


PUBLISHED = "4e979c92754cc9d7bdebd9dfe5edf3fc0b41b38714b394e4297fa851e3afd516"


@pytest.mark.parametrize(
    ("documents", "rho", "expected"),
    [(50_000, 0.26834, "pass"), (10_000, 0.26834, "fail"), (50_000, 0.2299, "fail"), (50_000, 0.2907, "fail")],
)
def test_a_published_tokenizer_brings_its_fingerprint(
    standard: tuple[Tokens, Path], documents: int, rho: float, expected: str
) -> None:
    tokens, _ = standard
    val = np.broadcast_to(np.uint16(9), 40_540_803)
    claimed = dataclasses.replace(
        tokens, tokenizer_sha256=PUBLISHED, val_documents=documents, tokens_per_byte=rho, val=val
    )
    from pgolf.audit.denominator import _published

    assert _published(claimed).verdict == expected


def test_overlap_by_documents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [np.concatenate([[1], rng.integers(8, 300, 40)]) for _ in range(60)]
    shards = [tmp_path / "a.bin", tmp_path / "b.bin"]
    val = np.concatenate(parts[:20]).astype(np.uint16)

    def found(first: list[np.ndarray], second: list[np.ndarray]) -> str:
        for path, documents in zip(shards, (first, second), strict=True):
            write_shard(path, np.concatenate(documents).astype(np.uint16))
        return check_overlap(val, shards).verdict

    assert found(parts[20:40], parts[40:]) == "pass"
    assert found(parts[20:40], parts[18:]) == "fail"
    assert found(parts[5:6], parts[40:]) == "fail"
    cut = [np.concatenate([parts[3][:20], [9]])]
    assert found(cut, parts[40:]) == "pass", "another document with the same beginning"


def test_a_single_copy_among_thousands_is_left_open(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [np.concatenate([[1], rng.integers(8, 300, 10)]) for _ in range(2_000)]
    write_shard(tmp_path / "a.bin", parts[7].astype(np.uint16))
    found = check_overlap(np.concatenate(parts).astype(np.uint16), [tmp_path / "a.bin"])
    assert found.verdict == "cannot tell"
    write_shard(tmp_path / "a.bin", np.concatenate(parts[:3]).astype(np.uint16))
    found = check_overlap(np.concatenate(parts).astype(np.uint16), [tmp_path / "a.bin"])
    assert found.verdict == "fail", "3 of 2,000 are no accident"


def test_training_shards_beyond_the_limit_leave_the_overlap_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "CHECKED_TOKENS", 40)
    rng = np.random.default_rng(0)
    shards = [tmp_path / f"{index}.bin" for index in range(3)]
    for path in shards:
        write_shard(path, np.concatenate([[1], rng.integers(8, 300, 30)]).astype(np.uint16))
    val = np.concatenate([[1], rng.integers(8, 300, 30)]).astype(np.uint16)
    assert check_overlap(val, shards[:2]).verdict == "pass"
    found = check_overlap(val, shards)
    assert found.verdict == "cannot tell"
    assert "shards not read: 1" in found.evidence


def test_a_packed_program_of_another_version_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths.PACKED_CODE.parent.mkdir(parents=True)
    paths.PACKED_CODE.write_text("print(1)\n")
    found = accounting.check_code(tmp_path)
    assert (found.check, found.verdict) == ("size.code", "cannot tell")
    assert "pgolf verify-size" in found.evidence
