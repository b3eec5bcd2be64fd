import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shards import read_shard, shard_files, shard_length, shard_name, write_shard
from pgolf.errors import InputError

IDS = st.lists(st.integers(0, 65535), min_size=1, max_size=300)


def raw(tokens, magic=20240520, version=1, count=None):
    """The format written out by hand."""
    header = struct.pack("<3i", magic, version, len(tokens) if count is None else count) + bytes(1024 - 12)
    return header + struct.pack(f"<{len(tokens)}H", *tokens)


@settings(max_examples=50, deadline=None)
@given(ids=IDS, dtype=st.sampled_from(["<u2", ">u2", "int64"]))
def test_round_trip_in_the_challenges_bytes(tmp_path_factory, ids, dtype):
    path = tmp_path_factory.mktemp("shard") / "a.bin"
    write_shard(path, np.array(ids, dtype=dtype))
    assert path.read_bytes() == raw(ids)
    assert read_shard(path).tolist() == ids
    assert shard_length(path) == len(ids)


def test_truncations_in_header_and_tokens_are_refused(tmp_path):
    path, whole = tmp_path / "a.bin", raw([1, 2, 3])
    for length in [*range(0, 1020, 51), *range(1020, len(whole))]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="truncated"):
            read_shard(path)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (raw([1, 2], magic=20240801), "its first number is 20240801, not 20240520"),
        (raw([1, 2], version=2), "has version 2, this reader knows 1"),
        (raw([1, 2], count=0), "declares 0 tokens"),
        (raw([1, 2], count=-5), "declares -5 tokens"),
        (raw([1, 2], count=2**31 - 1), "truncated: 1028 bytes, 2147483647 tokens need 4294968318"),
        (raw([1, 2], count=1), "too long: 1028 bytes, 1 tokens need 1026"),
        (raw([1, 2]) + b"x", "too long"),
    ],
)
def test_each_failure_has_its_own_message_and_a_remedy(tmp_path, data, problem):
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_shard(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)
    assert "run `pgolf tokenize` again" in str(error.value)


def test_missing_shard(tmp_path):
    with pytest.raises(InputError, match=r"a\.bin is missing"):
        read_shard(tmp_path / "a.bin")


@pytest.mark.parametrize("tokens", [[], [-1], [65536]])
def test_what_uint16_cannot_hold_is_not_written(tmp_path, tokens):
    with pytest.raises(InputError, match=r"shard needs|do not fit"):
        write_shard(tmp_path / "a.bin", np.array(tokens, dtype=np.int64))
    assert not (tmp_path / "a.bin").exists()


def test_names_and_order(tmp_path):
    assert shard_name("train", 7) == "fineweb_train_000007.bin"
    assert shard_name("val", 0) == "fineweb_val_000000.bin"
    assert shard_name("val_bytes", 12) == "fineweb_val_bytes_000012.bin"
    for split in ("train", "val", "val_bytes"):
        for index in (10, 2, 0):
            write_shard(tmp_path / shard_name(split, index), np.array([1]))
    for split in ("train", "val", "val_bytes"):
        assert [path.name for path in shard_files(tmp_path, split)] == [shard_name(split, i) for i in (0, 2, 10)]


def test_no_shards_of_a_split(tmp_path):
    write_shard(tmp_path / shard_name("val_bytes", 0), np.array([1]))
    with pytest.raises(InputError, match=r"no fineweb_val_\*\.bin: run `pgolf tokenize`"):
        shard_files(tmp_path, "val")
