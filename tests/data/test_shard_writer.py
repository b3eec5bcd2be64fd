import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shard_writer import ShardWriter
from pgolf.data.shards import read_shard, shard_files

PARTS = st.lists(st.lists(st.integers(0, 65535), max_size=40), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(parts=PARTS, limit=st.integers(2, 50))
def test_shards_join_to_the_stream_and_all_but_the_last_are_full(tmp_path_factory, parts, limit):
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "train", limit) as writer:
        for part in parts:
            writer.append(np.array(part, dtype=np.uint16))
    stream = [value for part in parts for value in part]
    assert writer.tokens == len(stream)
    lengths = [count for _, count in writer.files]
    assert lengths == [len(stream[start : start + limit]) for start in range(0, len(stream), limit)]
    if stream:
        assert [path for path, _ in writer.files] == shard_files(folder, "train")
        assert np.concatenate([read_shard(path) for path, _ in writer.files]).tolist() == stream
    else:
        assert not list(folder.iterdir())


def test_an_error_leaves_no_readable_shard(tmp_path):
    def write_and_fail():
        with ShardWriter(tmp_path, "val", 100) as writer:
            writer.append(np.arange(10, dtype=np.uint16))
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write_and_fail()
    with pytest.raises(ValueError, match=r"not a shard|truncated"):
        read_shard(tmp_path / "fineweb_val_000000.bin")
