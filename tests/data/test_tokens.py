import hashlib
import json
import random
import shutil

import numpy as np
import pytest

from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.tokens import open_tokens
from pgolf.errors import InputError


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    rng = random.Random(3)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    for split, count in (("train", 100), ("val", 30)):
        lines = (json.dumps({"text": " ".join(rng.choices(words, k=30))}) + "\n" for _ in range(count))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    data = DataConfig(train=str(folder / "train.jsonl"), val=str(folder / "val.jsonl"))
    config = TokenizeConfig(vocab_size=320, shard_tokens=1000)
    metrics = tokenize_corpus(data, config, folder / "tokens", folder / "tokenizer.model")
    return folder, metrics


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "copy")


def edit_manifest(folder, change):
    path = folder / "tokens" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refuses(folder, match, tokenizer=True):
    with pytest.raises(InputError, match=match) as error:
        open_tokens(folder / "tokens", folder / "tokenizer.model" if tokenizer else None)
    assert "pgolf tokenize" in str(error.value)


def test_opens_what_the_stage_wrote(made):
    folder, metrics = made
    tokens = open_tokens(folder / "tokens", folder / "tokenizer.model")
    assert (len(tokens.val), tokens.train_tokens) == (metrics["val_tokens"], metrics["train_tokens"])
    assert sum(len(read_shard(path)) for path in tokens.train) == metrics["train_tokens"]
    assert len(tokens.train) > 1
    assert tokens.val_bytes.sum(dtype=np.int64) == metrics["val_bytes"]
    assert 1 / tokens.tokens_per_byte == pytest.approx(metrics["bytes_per_token"], rel=1e-12)
    assert (tokens.val_documents, tokens.val_raw_bytes) == (metrics["val_documents"], metrics["val_raw_bytes"])
    assert tokens.vocab_size == 320
    assert (tokens.val == 1).sum() == 30


def test_missing_manifest(folder):
    (folder / "tokens" / "manifest.json").unlink()
    refuses(folder, r"manifest\.json is missing: run `pgolf tokenize`")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"schema": "pgolf.tokens", "version": 2}', '{"schema": "x", "version": 1}']
)
def test_wrong_schema(folder, text):
    (folder / "tokens" / "manifest.json").write_text(text)
    refuses(folder, "expected `pgolf.tokens` version 1")


def test_broken_manifests(folder):
    (folder / "tokens" / "manifest.json").write_text('{"schema": ')
    refuses(folder, "not valid JSON")
    for text in ('{"schema": "pgolf.tokens", "version": 1}', '{"schema": "pgolf.tokens", "version": 1, "train": 3}'):
        (folder / "tokens" / "manifest.json").write_text(text)
        refuses(folder, "lacks an entry or has one of another type", tokenizer=False)


def test_manifest_must_name_the_transform(folder):
    """Manifests from before CaseOps do not."""
    edit_manifest(folder, lambda manifest: manifest.pop("transform"))
    refuses(folder, r"lacks an entry .*'transform'")


def test_another_tokenizer(folder):
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes() + b"\0")
    refuses(folder, r"tokenizer\.model has SHA-256 \w{64}, but the tokens were made with \w{64}")
    assert open_tokens(folder / "tokens", None)
    path.unlink()
    refuses(folder, r"tokenizer\.model is missing")


@pytest.mark.parametrize("name", ["fineweb_val_000001.bin", "fineweb_val_bytes_000001.bin"])
def test_changed_validation_files_are_named(folder, name):
    path = folder / "tokens" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    refuses(folder, rf"{name} has SHA-256")


def test_truncated_train_shard(folder):
    path = folder / "tokens" / "fineweb_train_000001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    refuses(folder, r"fineweb_train_000001\.bin is truncated")


def test_shorter_train_shard(folder):
    path = folder / "tokens" / "fineweb_train_000001.bin"
    write_shard(path, np.array(read_shard(path))[:-1])
    refuses(folder, r"fineweb_train_000001\.bin has 999 tokens, its manifest says 1000")


@pytest.mark.parametrize("split", ["train", "val", "val_bytes"])
def test_missing_and_unlisted_shards(folder, split):
    first, extra = (folder / "tokens" / f"fineweb_{split}_{index:06d}.bin" for index in (0, 99))
    first.rename(extra)
    refuses(folder, rf"disagree on the {split} shards \(missing: {first.name}; not listed: {extra.name}\)")


@pytest.mark.parametrize("split", ["train", "val", "val_bytes"])
def test_a_lost_shard_and_one_too_many(folder, split):
    last = sorted((folder / "tokens").glob(f"fineweb_{split}_[0-9]*.bin"))[-1]
    extra = last.with_name(f"fineweb_{split}_000099.bin")
    shutil.copy(last, extra)
    refuses(folder, rf"disagree on the {split} shards \(missing: none; not listed: {extra.name}\)")
    extra.unlink()
    last.unlink()
    refuses(folder, rf"disagree on the {split} shards \(missing: {last.name}; not listed: none\)")


def test_sidecar_of_another_length(folder):
    """A sidecar that agrees with its own manifest entry, but has one count less than there are tokens."""

    def change(manifest):
        entry = manifest["val_bytes"]["shards"][-1]
        path = folder / "tokens" / entry["name"]
        write_shard(path, np.array(read_shard(path))[:-1])
        entry.update(tokens=entry["tokens"] - 1, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    edit_manifest(folder, change)
    refuses(folder, r"sidecar in .* has (\d+) entries for (\d+) validation tokens")


@pytest.mark.parametrize(("factor", "accepted"), [(1.0009, True), (0.9991, True), (1.0012, False), (0.9988, False)])
def test_ratio_may_be_off_by_a_thousandth(folder, factor, accepted):
    def change(manifest):
        manifest["val"]["tokens_per_byte"] *= factor

    edit_manifest(folder, change)
    if accepted:
        assert open_tokens(folder / "tokens", folder / "tokenizer.model")
    else:
        refuses(folder, "tokens per byte, its manifest says")
