import itertools

import numpy as np
import pytest
import torch
from counting_shards import shards
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.errors import InputError


def slow_starts(lengths, offsets, seq_len, seed):
    """Twin of the order: lists of starts per shard, popped from the end; yields the position of each row."""
    rng = np.random.Generator(np.random.PCG64(seed))
    while True:
        left = []
        for length in lengths:
            last = min(seq_len - 1, max(0, length - seq_len - 1))
            phase = int(rng.integers(last + 1)) if last > 0 else 0
            left.append([phase + int(block) * seq_len for block in rng.permutation((length - 1 - phase) // seq_len)])
        while any(left):
            remaining = np.array([len(starts) for starts in left], dtype=np.float64)
            shard = int(rng.choice(len(left), p=remaining / remaining.sum()))
            yield offsets[shard] + left[shard].pop()


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 400), min_size=1, max_size=6),
    rows=st.integers(1, 4),
    seq_len=st.integers(1, 16),
    world=st.integers(1, 3),
)
def test_equals_the_slow_twin_on_every_rank(tmp_path_factory, lengths, rows, seq_len, world):
    paths = shards(tmp_path_factory.mktemp("rows"), lengths)
    offsets = [0, *itertools.accumulate(lengths)]
    for rank in range(world):
        try:
            loader = ShuffledRows(paths, rows, seq_len, rank, world)
        except InputError:
            guaranteed = [max((n - seq_len) // seq_len, int(n > seq_len)) for n in lengths[rank::world]]
            assert len(lengths) < world or sum(guaranteed) < rows
            continue
        twin = slow_starts(lengths[rank::world], offsets[rank::world], seq_len, rank)
        for batch in itertools.islice(loader, 60):
            expected = [list(range(start, start + seq_len + 1)) for start in itertools.islice(twin, rows)]
            assert batch.inputs.tolist() == [row[:-1] for row in expected]
            assert batch.targets.tolist() == [row[1:] for row in expected]


def test_shapes_and_types(tmp_path):
    batch = next(ShuffledRows(shards(tmp_path, [500]), 3, 16))
    assert batch.inputs.shape == batch.targets.shape == (3, 16)
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.is_contiguous()
    assert batch.targets.is_contiguous()
    assert batch.cu_seqlens is None


def test_an_epoch_takes_every_block_once_and_phases_differ_between_epochs(tmp_path):
    lengths, seq_len = [1000, 330], 10
    loader = ShuffledRows(shards(tmp_path, lengths), 1, seq_len)
    phases = []
    for _ in range(6):
        starts = []
        blocks = int(loader._left.sum()) or None
        if blocks is None:  # drawn when the next row is asked for
            starts.append(int(next(loader).inputs[0, 0]))
            blocks = int(loader._left.sum())
        starts += [int(batch.inputs[0, 0]) for batch in itertools.islice(loader, blocks)]
        for first, length in ((0, 1000), (1000, 330)):
            own = sorted(start - first for start in starts if first <= start < first + length)
            phase = own[0]
            assert 0 <= phase < seq_len
            assert own == list(range(phase, length - seq_len, seq_len))
            phases.append(phase)
    assert len(set(phases)) > 1


def test_ranks_read_disjoint_shards(tmp_path):
    paths = shards(tmp_path, [300] * 5)
    seen = []
    for rank in range(2):
        loader = ShuffledRows(paths, 2, 8, rank, 2)
        tokens = torch.cat([torch.cat([b.inputs, b.targets]).flatten() for b in itertools.islice(loader, 100)])
        seen.append({int(token) // 300 for token in tokens})
    assert seen == [{0, 2, 4}, {1, 3}]


@pytest.mark.parametrize("skipped", [0, 1, 7, 40, 200])
def test_skipping_equals_taking(tmp_path, skipped):
    paths = shards(tmp_path, [200, 90])
    taken, jumped = ShuffledRows(paths, 3, 8), ShuffledRows(paths, 3, 8)
    for _ in range(skipped):
        next(taken)
    jumped.skip(skipped)
    for _ in range(30):
        assert torch.equal(next(taken).inputs, next(jumped).inputs)


def test_too_little_data_and_too_few_shards(tmp_path):
    paths = shards(tmp_path, [100, 100])
    with pytest.raises(InputError, match=r"2 training shards cannot feed 3 ranks.*tokenize.shard_tokens"):
        ShuffledRows(paths, 1, 8, 0, 3)
    with pytest.raises(InputError, match=r"hold 22 blocks of 8 tokens, one batch needs 23"):
        ShuffledRows(paths, 23, 8)
    assert next(ShuffledRows(paths, 22, 8))
    with pytest.raises(InputError, match="hold 0 blocks of 100 tokens"):
        ShuffledRows(paths, 1, 100)
    assert next(ShuffledRows(paths, 1, 99)).inputs.shape == (1, 99)
