"""Each way in which byte accounting went wrong in the challenge, and what stops it here.

One test a row of the auditors' table, then the preparation bugs. `forge` writes a folder whose manifest agrees with its
files in every hash, length and ratio: what then still refuses is the guard for the mistake itself.
"""

import hashlib
import io
import json
import math
import shutil

import numpy as np
import pytest
import sentencepiece
from cased_corpus import TRAIN, VAL, tokenize

from pgolf.config import build
from pgolf.data import caseops
from pgolf.data.accounting import examine
from pgolf.data.byte_table import SPACE, byte_table
from pgolf.data.catalogue import CATALOGUE
from pgolf.data.shards import read_shard, shard_files, write_shard
from pgolf.data.surfaces import encode_counted
from pgolf.data.tokenizer import OPTIONS, encode, load_tokenizer, parse_tokenizer
from pgolf.data.tokens import open_tokens
from pgolf.data.verify import Validation, check_validation
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import summarize
from pgolf.evaluate.windows import Windows, plan_windows
from pgolf.runtime import validation


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return {
        kind: tokenize(tmp_path_factory.mktemp(kind), case_ops=kind == "caseops") for kind in ("standard", "caseops")
    }


@pytest.fixture
def standard(made, tmp_path):
    return shutil.copytree(made["standard"], tmp_path / "standard")


@pytest.fixture
def cased(made, tmp_path):
    return shutil.copytree(made["caseops"], tmp_path / "caseops")


def load(folder, split="val"):
    return np.concatenate([read_shard(path) for path in shard_files(folder / "tokens", split)])


def forge(folder, tokens, counts, **top):
    """Other validation tokens and bytes, in a manifest that agrees with them; `top` replaces entries of it."""
    path = folder / "tokens/manifest.json"
    manifest = {**json.loads(path.read_text()), **top}
    for split, values in (("val", tokens), ("val_bytes", counts)):
        (entry,) = manifest[split]["shards"]
        shard = folder / "tokens" / entry["name"]
        write_shard(shard, values)
        entry.update(tokens=len(values), sha256=hashlib.sha256(shard.read_bytes()).hexdigest())
        manifest[split]["tokens"] = len(values)
    total = int(counts.sum())
    manifest["val"].update(bytes=total, tokens_per_byte=(len(tokens) - 1) / total)
    path.write_text(json.dumps(manifest))


def refused(folder, match):
    with pytest.raises(InputError, match=match):
        open_tokens(folder / "tokens", folder / "tokenizer.model")


def pieces_of(folder, tokens):
    processor = load_tokenizer(folder / "tokenizer.model")
    return processor, [processor.id_to_piece(index) for index in tokens.tolist()]


def test_a_faithful_forgery_is_accepted(standard, cased):
    """Otherwise the tests below would prove nothing."""
    for folder in (standard, cased):
        forge(folder, load(folder), load(folder, "val_bytes"))
        assert open_tokens(folder / "tokens", folder / "tokenizer.model").val_documents == len(VAL)


def test_caseops_shards_scored_by_lut(cased):
    """PR 2071: the table charges 3 bytes for each operator token."""
    processor, pieces = pieces_of(cased, load(cased))
    with pytest.raises(InputError, match="case operator"):
        byte_table(processor)
    lut = np.array([0 if i == 1 else 1 if processor.is_byte(int(i)) else len(p.replace(SPACE, " ").encode())
                    for i, p in zip(load(cased), pieces, strict=True)])  # fmt: skip
    assert 1.05 < lut.sum() / load(cased, "val_bytes").sum() < 1.4
    forge(cased, load(cased), lut)
    refused(cased, r"charges \d+ bytes to \d+ case operators.*PR 2071")
    for path in (cased / "tokens").glob("fineweb_val_bytes_*"):
        path.unlink()
    refused(cased, "val_bytes")
    with pytest.raises(InputError, match="case operator"):  # the packed program, which would fall back to the table
        validation(cased / "tokens", cased / "tokenizer.model")
    assert examine(2.40073153, 1.00692894, 47_851_520).right is False


def test_caseops_files_on_the_paths_of_a_standard_set(standard, cased):
    """PR 2071's cause: tokenizer and shards of the other kind, vocabulary as large, where the standard ones belong."""
    shutil.copy(cased / "tokenizer.model", standard / "tokenizer.model")
    refused(standard, r"has SHA-256 \w+, but the tokens were made with")
    sha256 = hashlib.sha256((cased / "tokenizer.model").read_bytes()).hexdigest()
    forge(standard, load(standard), load(standard, "val_bytes"), tokenizer_sha256=sha256)
    refused(standard, r"has case operators, but .* `transform` 'none'")
    forge(cased, load(cased), load(cased, "val_bytes"), transform="none")
    refused(cased, r"has case operators, but .* `transform` 'none'")


def test_validation_and_training_overlap(made, tmp_path):
    """Issue 2127: training documents counted from 10, validation from 50. What is in both is dropped and counted."""
    documents = [*VAL, *TRAIN]
    mixed = tokenize(tmp_path / "mixed", train=documents[10:], val=VAL)
    train = json.loads((mixed / "tokens/manifest.json").read_text())["train"]
    assert (train["overlap_documents"], train["documents"]) == (len(VAL) - 10, len(TRAIN))
    assert load(mixed, "train").tolist() == load(made["standard"], "train").tolist()


def test_training_shards_of_another_preparation(standard, tmp_path):
    """Issue 2127 again: shards prepared with another split, beside the published validation shards."""
    other = tokenize(tmp_path / "other", train=[*VAL[10:], *TRAIN], val=VAL[:10])
    name = "fineweb_train_000000.bin"
    shutil.copy(other / "tokens" / name, standard / "tokens" / name)
    refused(standard, name)


def test_ten_thousand_validation_documents():
    """PR 1854, PR 2039: a default of the preparation script. Here no number has a default; a published set is whole."""
    for name in ("sp8192", "sp8192-caseops"):
        export = CATALOGUE[name]
        whole = Validation(
            documents=50_000, tokens=export.val_tokens, bytes=round(export.val_tokens / export.tokens_per_byte)
        )
        check_validation(export, whole, "test")
        part = Validation(documents=10_000, tokens=whole.tokens // 5, bytes=whole.bytes // 5)
        with pytest.raises(InputError, match="10,000 validation documents"):
            check_validation(export, part, "test")
    assert "10,000" in examine(2.5, 2.5 / math.log(2) * 9_662_464 / 32_756_252, 9_662_464).text


def test_leading_space_counted_twice(standard):
    """Issue 1719: once by the table, once more by the evaluation."""
    tokens, counts = load(standard), load(standard, "val_bytes")
    spaced = byte_table(load_tokenizer(standard / "tokenizer.model")).space[tokens]
    forge(standard, tokens, counts + spaced)
    refused(standard, "the byte sidecar counts")


def test_byte_piece_counted_by_its_label(standard):
    """PR 1734: `<0xF0>` is 1 byte, not 6."""
    tokens, counts = load(standard), np.array(load(standard, "val_bytes"))
    (places,) = np.nonzero((tokens >= 4) & (tokens < 260))
    assert counts[places].tolist() == [1] * len(places) != []
    counts[places] = len("<0xF0>")
    forge(standard, tokens, counts)
    refused(standard, r"has 6 instead of 1\)")


def test_no_stand_alone_space_piece(tmp_path):
    """Issue 897: a lone space turns into three byte pieces."""
    spaceless = [text.replace(" ", "").replace("\n", "") for text in TRAIN]
    with pytest.raises(InputError, match="no piece for a single space"):
        tokenize(tmp_path / "standard", train=spaceless)
    assert not (tmp_path / "standard/tokens").exists()
    # Counting by surface gives them the one byte that they stand for.
    folder = tokenize(tmp_path / "caseops", train=spaceless, case_ops=True)
    tokens, counts = encode_counted(load_tokenizer(folder / "tokenizer.model"), [caseops.encode("a B")])
    assert len(tokens) == 1 + 1 + 3 + 2
    assert (counts.sum(), counts.max()) == (3, 1)


def test_byte_counts_from_the_metadata_of_a_custom_tokenizer(standard):
    """PR 1143 and others: a table brought along said 3 bytes for byte pieces. Here it is made from the model itself."""
    tokens, counts = load(standard), np.array(load(standard, "val_bytes"))
    counts[np.nonzero((tokens >= 4) & (tokens < 260))[0][:27]] = 3
    forge(standard, tokens, counts)
    refused(standard, r"has 3 instead of 1\)")
    (standard / "tokenizer.meta.npz").write_bytes(b"3" * 100)  # nothing reads it
    _, table = validation_without_sidecar(standard)
    assert table.tolist() == byte_table(load_tokenizer(standard / "tokenizer.model")).counts(tokens).tolist()


def validation_without_sidecar(folder):
    for path in (folder / "tokens").glob("fineweb_val_bytes_*"):
        path.unlink()
    return validation(folder / "tokens", folder / "tokenizer.model")


def test_case_folding():
    """Issue 1604: capitals that no decoder can bring back. CaseOps can."""
    writer = io.BytesIO()
    options = {**OPTIONS, "normalization_rule_name": "nmt_nfkc_cf"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAIN), model_writer=writer, vocab_size=360, **options
    )
    with pytest.raises(InputError, match="turns `A` into `a`: case folding"):
        parse_tokenizer(writer.getvalue(), "test")
    for text in VAL:
        assert caseops.decode(caseops.encode(text)) == text


def test_sliding_window_tail_repeated():
    """PR 401, PR 549: a window for every stride up to the end scored the last targets up to 32 times."""
    targets, length, stride = 10_000, 2048, 64
    start = np.arange(0, targets, stride)
    end = np.minimum(start + length, targets)
    first = np.where(start == 0, 0, np.maximum(end - stride, start))
    assert not Windows(start, end, first).covers_once(targets)
    assert plan_windows(targets, length, stride).covers_once(targets)


def test_silent_validation_truncation(standard):
    """PR 640: VAL_MAX_TOKENS = 500000. Here no such key is known, and cut shards are not opened."""
    with pytest.raises(InputError, match="val_max_tokens"):
        build(EvaluateConfig, {"val_max_tokens": 500_000}, "evaluate")
    tokens, counts = load(standard), load(standard, "val_bytes")
    forge(standard, tokens[: len(tokens) // 2], counts[: len(counts) // 2])
    refused(standard, rf"hold \d+ BOS \(id 1\) for {len(VAL)} documents")
    forge(standard, tokens[:-5], counts)
    refused(standard, r"sidecar in .* entries for")
    forge(standard, tokens, counts)
    write_shard(shard_files(standard / "tokens", "val")[0], tokens[:-5])
    refused(standard, rf"has {len(tokens) - 5} tokens, its manifest says {len(tokens)}")


def test_subset_reported_as_full(made):
    """PR 1785, PR 1835: scores of the first few million tokens. A score is over all targets that have bytes."""
    counts = load(made["standard"], "val_bytes")[1:]
    losses = np.ones(len(counts), np.float32)
    assert summarize(losses, counts).tokens == len(counts)
    with pytest.raises(InputError, match="do not belong together"):
        summarize(losses[:100], counts)


def test_sidecar_swallowed_by_the_val_glob(cased):
    """`fineweb_val_*.bin` matches the sidecar too."""
    folder = cased / "tokens"
    assert len(list(folder.glob("fineweb_val_*.bin"))) == 2
    assert [path.name for path in shard_files(folder, "val")] == ["fineweb_val_000000.bin"]
    assert len(validation(folder, cased / "tokenizer.model")[0]) == len(load(cased))
    (folder / "fineweb_val_bytes_000000.bin").rename(folder / "fineweb_val_000001.bin")
    refused(cased, r"not listed: fineweb_val_000001\.bin")


def test_diagnostic_truncation():
    """The plain evaluation of PR 1855 drops what fills no batch; here the last window is as short as it must be."""
    windows = plan_windows(47_853_343, 2048, 2048)
    assert (windows.end - windows.first).sum() == 47_853_343
    assert "diagnostic" in examine(2.5, 2.5 / math.log(2) * 47_710_208 / 150_638_137, 47_710_208).text


def test_preparation_without_bos(standard):
    """PR 1736: no document is found in such tokens."""
    tokens, counts = load(standard), load(standard, "val_bytes")
    forge(standard, tokens[tokens != 1], counts[tokens != 1])
    refused(standard, r"hold 0 BOS \(id 1\) for 30 documents, and start with id \d+: every document must start")
    forge(standard, np.append(tokens[1:], 1), np.append(counts[1:], 0))
    refused(standard, "start with id")


def test_training_shards_without_bos(standard):
    path = standard / "tokens/fineweb_train_000000.bin"
    train = np.array(read_shard(path))
    write_shard(path, train[train != 1])
    manifest = json.loads((standard / "tokens/manifest.json").read_text())
    tokens = int((train != 1).sum())
    manifest["train"]["shards"][0].update(tokens=tokens, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    (standard / "tokens/manifest.json").write_text(json.dumps(manifest))
    refused(standard, r"fineweb_train_000000.bin starts with id \d+: every document must start with BOS")


def test_prefix_decoding_inflates_bytes(made):
    """PR 1797: what decoding one token more adds, where half a character decodes to a 3-byte replacement character."""
    processor = load_tokenizer(made["caseops"] / "tokenizer.model")
    text = "The 𓀀𓀁 OK"
    tokens, counts = encode_counted(processor, [caseops.encode(text)])
    ids = tokens[1:].tolist()
    operators = str.maketrans("", "", "\ue001\ue002\ue003\ue004")
    lengths = [len(processor.decode(ids[:n]).translate(operators).encode()) for n in range(len(ids) + 1)]
    by_prefix = np.maximum(np.diff(lengths), 0)
    assert int(by_prefix.sum()) > len(text.encode())
    assert int(counts.sum()) == len(text.encode())


def test_parallel_preparation_changes_nothing(made):
    """PR 2109: slices prepared in parallel lost documents. Threads and batches leave order and number as they are."""
    for kind, folder in made.items():
        processor = load_tokenizer(folder / "tokenizer.model")
        texts = [caseops.encode(text) if kind == "caseops" else text for text in VAL]
        expected = load(folder).tolist()
        assert np.concatenate(encode(processor, texts)).tolist() == expected
        for threads in (1, 2, 5):
            ids = processor.encode(texts, num_threads=threads)
            assert [index for document in ids for index in (1, *document)] == expected
    assert "parallel" in examine(2.5, 1.0, 36_562_944).text


def test_a_lost_slice_of_documents(standard):
    tokens, counts = load(standard), load(standard, "val_bytes")
    starts = np.flatnonzero(tokens == 1)
    keep = np.r_[0 : starts[10], starts[20] : len(tokens)]
    forge(standard, tokens[keep], counts[keep])
    refused(standard, r"hold 20 BOS \(id 1\) for 30 documents")
