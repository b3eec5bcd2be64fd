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


@pytest.mark.parametrize("values", [{"vocab_size": 261}, {"vocab_size": 65536}, {"shard_tokens": 2**31 - 1}])
def test_limits_are_allowed(values):
    assert build(TokenizeConfig, values, "tokenize")


def test_one_file_cannot_be_both_splits():
    assert DataConfig(train="a.jsonl", val="b.jsonl")
    with pytest.raises(InputError, match=r"`train` and `val` are both 'a.jsonl'"):
        DataConfig(train="a.jsonl", val="a.jsonl")
    with pytest.raises(InputError, match="`val` is empty"):
        DataConfig(train="a.jsonl", val="")
