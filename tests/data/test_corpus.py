import hashlib
import json
import random

import numpy as np
import pytest

from pgolf.data import corpus
from pgolf.data.byte_table import byte_table
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.data.shards import read_shard, shard_files
from pgolf.data.tokenizer import load_tokenizer
from pgolf.errors import InputError

VOCAB = 320


def documents(seed, count):
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 40))) + "." for _ in range(count)]


TRAIN, VAL = documents(1, 150), [*documents(2, 20), "  two\n\nlines ½ 𓀀 "]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def run(folder, train=TRAIN, val=VAL, progress=None, **settings):
    folder.mkdir(exist_ok=True)
    data = DataConfig(train=write(folder / "train.jsonl", train), val=write(folder / "val.jsonl", val))
    config = TokenizeConfig(**{"vocab_size": VOCAB, **settings})
    return tokenize_corpus(data, config, folder / "out" / "tokens", folder / "out" / "tokenizer.model", progress)


def joined(folder, split):
    return np.concatenate([read_shard(path) for path in shard_files(folder / "out" / "tokens", split)])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "out").rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, run(folder)


def split_documents(tokens):
    return [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == 1))[1:]]


def test_shards_hold_the_documents_in_order(done):
    folder, _ = done
    processor = load_tokenizer(folder / "out" / "tokenizer.model")
    for split, texts in (("train", TRAIN), ("val", VAL)):
        assert split_documents(joined(folder, split)) == [[1, *processor.encode(text)] for text in texts]


def test_metrics_and_manifest_agree_with_the_files(done):
    folder, metrics = done
    manifest = json.loads((folder / "out" / "tokens" / "manifest.json").read_bytes())
    train, val, counts = (joined(folder, split) for split in ("train", "val", "val_bytes"))
    assert metrics == {
        "train_tokens": len(train),
        "val_tokens": len(val),
        "train_documents": len(TRAIN),
        "val_documents": len(VAL),
        "val_bytes": int(counts.sum(dtype=np.int64)),
        "val_raw_bytes": sum(len(text.encode()) for text in VAL),
        "bytes_per_token": pytest.approx(int(counts.sum(dtype=np.int64)) / (len(val) - 1), rel=1e-12),
        "overlap_documents": 0,
        "tokenizer_skipped_documents": sum(len(text.encode()) > 4192 for text in TRAIN),
        "tokenizer_vocab_size": VOCAB,
    }
    tokenizer = (folder / "out" / "tokenizer.model").read_bytes()
    assert manifest["tokenizer_sha256"] == hashlib.sha256(tokenizer).hexdigest()
    for split in ("train", "val", "val_bytes"):
        for entry in manifest[split]["shards"]:
            data = (folder / "out" / "tokens" / entry["name"]).read_bytes()
            assert (entry["sha256"], entry["tokens"]) == (hashlib.sha256(data).hexdigest(), (len(data) - 1024) // 2)
    hashes = b"".join(hashlib.sha256(text.encode()).digest() for text in VAL)
    assert manifest["val"]["documents_sha256"] == hashlib.sha256(hashes).hexdigest()


def test_sidecar_is_the_byte_table_and_counts_the_normalised_text(done):
    folder, metrics = done
    val, counts = joined(folder, "val"), joined(folder, "val_bytes")
    table = byte_table(load_tokenizer(folder / "out" / "tokenizer.model"))
    assert counts.tolist() == table.counts(val).tolist()
    assert not counts[val == 1].any()
    normalised = [*VAL[:-1], "two lines 1⁄2 𓀀"]
    assert metrics["val_bytes"] == sum(len(text.encode()) for text in normalised)


def test_a_second_run_gives_equal_bytes(done, tmp_path):
    run(tmp_path / "again")
    expected = contents(done[0])
    assert len(expected) == 5
    assert contents(tmp_path / "again") == expected


def test_batches_do_not_show_in_the_output(done, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 50)
    assert max(map(len, corpus._batches(TRAIN))) < 10
    run(tmp_path / "small")
    assert contents(tmp_path / "small") == contents(done[0])


def test_shard_length_cuts_the_same_stream(done, tmp_path):
    run(tmp_path / "short", shard_tokens=101)
    for split in ("train", "val", "val_bytes"):
        assert joined(tmp_path / "short", split).tolist() == joined(done[0], split).tolist()
        lengths = {len(read_shard(path)) for path in shard_files(tmp_path / "short/out/tokens", split)[:-1]}
        assert lengths == {101}


def test_validation_documents_never_reach_training(done, tmp_path):
    """With validation text mixed into the training file, everything comes out as without it, and it is counted."""
    mixed = [VAL[3], *TRAIN[:70], *VAL, *TRAIN[70:], VAL[3]]
    metrics = run(tmp_path / "mixed", train=mixed)
    assert metrics == {**done[1], "overlap_documents": len(VAL) + 2}
    clean, found = contents(done[0]), contents(tmp_path / "mixed")
    assert {name for name in clean if clean[name] != found[name]} == {"out/tokens/manifest.json"}
    manifests = [json.loads(files["out/tokens/manifest.json"]) for files in (clean, found)]
    assert [manifest["train"].pop("overlap_documents") for manifest in manifests] == [0, len(VAL) + 2]
    assert manifests[0] == manifests[1]


def test_a_failing_run_replaces_nothing_and_leaves_no_rest(done, tmp_path):
    folder = tmp_path / "kept"
    run(folder)
    before = contents(folder)
    bad = folder / "bad.jsonl"
    write(bad, VAL)
    bad.write_text(bad.read_text() + "broken\n")
    out = folder / "out"
    model = str(out / "tokenizer.model")  # no training, so that the failure comes while shards are written
    for train, val in ((bad, folder / "val.jsonl"), (folder / "train.jsonl", bad)):
        data = DataConfig(train=str(train), val=str(val))
        config = TokenizeConfig(vocab_size=VOCAB, model=model)
        with pytest.raises(InputError, match=rf"bad\.jsonl, line {len(VAL) + 1} is not JSON"):
            tokenize_corpus(data, config, out / "tokens", out / "tokenizer.model")
        assert contents(folder) == before
        assert sorted(path.name for path in out.iterdir()) == ["tokenizer.model", "tokens"]


def test_published_model_is_used_as_it_is(done, tmp_path):
    model = done[0] / "out" / "tokenizer.model"
    run(tmp_path / "published", train=TRAIN[:20], model=str(model))
    assert (tmp_path / "published/out/tokenizer.model").read_bytes() == model.read_bytes()
    assert joined(tmp_path / "published", "val").tolist() == joined(done[0], "val").tolist()
    with pytest.raises(InputError, match=r"has 320 pieces, `tokenize.vocab_size` is 8192: set .* to 320"):
        run(tmp_path / "wrong", model=str(model), vocab_size=8192)


def test_progress_names_phases_and_ends_with_totals(tmp_path):
    calls = []
    run(tmp_path / "told", progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in calls)) == ["held out", "tokenizer", "train", "val"]
    assert {call for call in calls if call[2]} == {
        ("held out", len(VAL), len(VAL)),
        ("train", len(TRAIN), len(TRAIN)),
        ("val", len(VAL), len(VAL)),
    }


def test_splits_without_text_are_refused(done, tmp_path):
    model = str(done[0] / "out" / "tokenizer.model")
    for name, train, val in (("a", [], VAL), ("b", VAL[:3], VAL)):
        with pytest.raises(InputError, match=r"`data.train` is .* holds no documents"):
            run(tmp_path / name, train=train, val=val, model=model)
    for name, val in (("c", []), ("d", ["", "  "])):
        with pytest.raises(InputError, match=r"`data.val` is .* hold no text"):
            run(tmp_path / name, val=val, model=model)


def test_documents_that_the_tokenizer_trainer_skips_are_counted(tmp_path):
    """The trainer drops long documents without a word; they still become training tokens."""
    data = tmp_path / "data"
    data.mkdir()
    long = " ".join(["word"] * 1200)
    (data / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TRAIN, long]))
    (data / "val.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in VAL))
    config = DataConfig(train=str(data / "docs.jsonl"), val=str(data / "val.jsonl"))
    metrics = tokenize_corpus(config, TokenizeConfig(vocab_size=VOCAB), tmp_path / "tokens", tmp_path / "t.model")
    assert metrics["tokenizer_skipped_documents"] == sum(len(text.encode()) > 4192 for text in [*TRAIN, long]) >= 1
    assert metrics["train_documents"] == len(TRAIN) + 1
