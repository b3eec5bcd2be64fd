from pathlib import Path

import pytest

from pgolf.config import build
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.errors import InputError


def test_defaults_are_the_challenges():
    config = TokenizeConfig()
    assert (config.vocab_size, config.model, config.shard_tokens) == (1024, None, 100_000_000)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"vocab_size": 260}, "vocab_size"),
        ({"vocab_size": 65537}, "vocab_size"),
        ({"vocab_size": 264, "case_ops": True}, "vocab_size"),
        ({"shard_tokens": 1}, "shard_tokens"),
        ({"shard_tokens": 2**31}, "shard_tokens"),
        ({"tokenizer_train_docs": 0}, "tokenizer_train_docs"),
        ({"model": "a.model", "tokenizer_train_docs": 5}, "model"),
    ],
)
def test_impossible_tokenize_settings_are_named_with_their_value(values, named):
    with pytest.raises(InputError) as error:
        build(TokenizeConfig, values, "tokenize")
    assert f"`{named}`" in str(error.value)
    assert str(values[named]) in str(error.value)


@pytest.mark.parametrize(
    "values",
    [{"vocab_size": 261}, {"vocab_size": 265, "case_ops": True}, {"vocab_size": 65536}, {"shard_tokens": 2**31 - 1}],
)
def test_limits_are_allowed(values):
    assert build(TokenizeConfig, values, "tokenize")


def test_one_file_cannot_be_both_splits():
    assert DataConfig(train="a.jsonl", val="b.jsonl")
    with pytest.raises(InputError, match=r"`train` and `val` are both 'a.jsonl'"):
        DataConfig(train="a.jsonl", val="a.jsonl")
    with pytest.raises(InputError, match="`val` is empty"):
        DataConfig(train="a.jsonl", val="")


def test_a_fetched_export_is_both_splits():
    path = "data/published/sp8192/published.json"
    assert DataConfig(train=path, val=path).published == Path(path)
    assert DataConfig(train="a.jsonl", val="b.jsonl").published is None
    assert DataConfig(train=path, val=path, train_shards=3).train_shards == 3
    for train, val in ((path, "b.jsonl"), ("a.jsonl", path), (path, "other/published.json")):
        with pytest.raises(InputError, match=r"name the same published\.json in both keys"):
            DataConfig(train=train, val=val)


@pytest.mark.parametrize("values", [{"train": "a.jsonl", "val": "b.jsonl"}, {"train": "published.json"}])
def test_train_shards_belong_to_a_fetched_export(values):
    values = {"val": "published.json", **values, "train_shards": 0 if values["train"] == "published.json" else 1}
    with pytest.raises(InputError, match=r"`train_shards` is [01]: give 1 or more, and only with a fetched export"):
        build(DataConfig, values, "data")
