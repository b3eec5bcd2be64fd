"""Sequential and coprime-stride rows against slow twins, and the wrappers of loaders."""

import itertools
import math
import threading

import numpy as np
import pytest
import torch
from counting_shards import shards
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.batches import Batch, cut_rows
from pgolf.data.coprime_rows import CoprimeRows, seed_of
from pgolf.data.packed_documents import PackedDocuments
from pgolf.data.prefetch import Prefetch
from pgolf.data.sequential_rows import SequentialRows
from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.data.streams import InTurn
from pgolf.errors import InputError


def equal(a, b):
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    rows=st.integers(1, 3),
    seq_len=st.integers(1, 9),
    world=st.integers(1, 3),
)
def test_sequential_rows_are_one_endless_stream(tmp_path_factory, lengths, rows, seq_len, world):
    paths, total = shards(tmp_path_factory.mktemp("rows"), lengths), sum(lengths)
    span = rows * seq_len + 1
    if total < world * span:
        with pytest.raises(InputError, match=f"hold {total} tokens, one batch needs {world * span}"):
            SequentialRows(paths, rows, seq_len, 0, world)
        return
    endless = itertools.cycle(range(total))
    loaders = [SequentialRows(paths, rows, seq_len, rank, world) for rank in range(world)]
    for _ in range(12):
        for loader in loaders:
            expected = list(itertools.islice(endless, span))
            batch = next(loader)
            assert batch.inputs.shape == batch.targets.shape == (rows, seq_len)
            assert batch.inputs.flatten().tolist() == expected[:-1]
            assert batch.targets.flatten().tolist() == expected[1:]
            assert batch.cu_seqlens is None
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64


class SlowCoprime:
    """The order `coprime` written out plainly, one list per shard."""

    def __init__(self, names, lengths, rows, seq_len, world):
        h = 0
        for byte in "".join(names).encode():
            h = ((h ^ byte) * 1099511628211) & (2**64 - 1)
        self.rng = np.random.Generator(np.random.PCG64(h))
        self.lengths, self.rows, self.seq_len, self.world = lengths, rows, seq_len, world
        self.queues = [[] for _ in lengths]
        self.left = [(n - 1) // seq_len for n in lengths]
        self.batches = 0

    def pop(self, shard):
        if not self.queues[shard]:
            n = self.lengths[shard]
            phase = int(self.rng.integers(0, min(self.seq_len - 1, n - self.seq_len - 1) + 1))
            blocks = (n - 1 - phase) // self.seq_len
            start, stride = int(self.rng.integers(0, blocks)), 1
            if blocks > 1:
                stride = int(self.rng.integers(1, blocks))
                while math.gcd(stride, blocks) != 1:
                    stride = int(self.rng.integers(1, blocks))
            order = [(start + j * stride) % blocks for j in range(blocks)]
            self.queues[shard] = [phase + block * self.seq_len for block in order]
            self.left[shard] = blocks
        self.left[shard] -= 1
        return self.queues[shard].pop(0)

    def batch(self):
        g, count = self.world * self.rows, len(self.lengths)
        p = min(self.batches / 1800, 1)
        self.batches += 1
        low, high = min(max(8, self.world), count, g), min(max(32, 8 * self.world), count, g)
        mixed = round(low + p * (high - low))
        # As an array: Python's power may differ from NumPy's in the last bit, and a draw with it.
        weights = np.array([max(left, 1) for left in self.left]) ** (0.9 - 0.4 * p)
        chosen = self.rng.choice(count, mixed, replace=False, p=weights / weights.sum())
        extra = self.rng.multinomial(g - mixed, weights[chosen] / weights[chosen].sum())
        hands = []
        for shard, more in zip(chosen, extra, strict=True):
            taken = [(int(shard), self.pop(shard)) for _ in range(1 + more)]
            hands.append([taken[i] for i in self.rng.permutation(len(taken))])
        found = []
        while any(hands):
            hands = [hands[i] for i in self.rng.permutation(len(hands))]
            for hand in hands:
                found.append(hand.pop())
            hands = [hand for hand in hands if hand]
        return found


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(9, 80), min_size=1, max_size=40),
    rows=st.integers(1, 6),
    seq_len=st.integers(1, 8),
    world=st.integers(1, 3),
)
def test_coprime_rows_equal_the_slow_twin_on_every_rank(tmp_path_factory, lengths, rows, seq_len, world):
    paths = shards(tmp_path_factory.mktemp("coprime"), lengths)
    offsets = [0, *itertools.accumulate(lengths)]
    loaders = [CoprimeRows(paths, rows, seq_len, rank, world) for rank in range(world)]
    twin = SlowCoprime([path.name for path in paths], lengths, rows, seq_len, world)
    for _ in range(12):
        windows = twin.batch()
        for rank, loader in enumerate(loaders):
            batch = next(loader)
            starts = [offsets[shard] + position for shard, position in windows[rank::world]]
            assert batch.inputs.tolist() == [list(range(s, s + seq_len)) for s in starts]
            assert batch.targets.tolist() == [list(range(s + 1, s + seq_len + 1)) for s in starts]


def test_a_coprime_walk_visits_every_block_once_before_any_twice(tmp_path):
    """One window a batch, so that nothing is shuffled: the walk of each shard round after round."""
    lengths, seq_len = [257, 95, 41], 8
    loader, offsets = CoprimeRows(shards(tmp_path, lengths), 1, seq_len), [0, 257, 352]
    walks = [[] for _ in lengths]
    for batch in itertools.islice(loader, 300):
        start = int(batch.inputs[0, 0])
        shard = int(np.searchsorted(offsets, start, side="right")) - 1
        walks[shard].append(start - offsets[shard])
    for walk, length in zip(walks, lengths, strict=True):
        seen = []
        while len(walk) >= len(blocks := list(range(walk[0] % seq_len, length - seq_len, seq_len))):
            first, walk = walk[: len(blocks)], walk[len(blocks) :]
            assert sorted(first) == blocks
            strides = {(b - a) // seq_len % len(blocks) for a, b in itertools.pairwise(first)}
            assert len(strides) == 1
            assert math.gcd(*strides, len(blocks)) == 1
            seen.append((first[0], *strides))
            if not walk:
                break
        assert len(set(seen)) > 1  # phases, starts and strides change from round to round


def test_coprime_order_depends_on_the_names_and_not_on_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lengths = [200, 150]
    one, two = (CoprimeRows(shards(tmp_path / name, lengths), 3, 8) for name in "ab")
    assert all(equal(next(one), next(two)) for _ in range(20))
    assert seed_of(["x"]) == (ord("x") * 1099511628211) % 2**64
    assert seed_of(["ab", "c"]) != seed_of(["ac", "b"])


def test_a_shard_without_a_row_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a training shard of 9 tokens holds no row of 9 \+ 1"):
        CoprimeRows(shards(tmp_path, [100, 9]), 1, 9)
    assert next(CoprimeRows(shards(tmp_path, [100, 10]), 1, 9)).inputs.shape == (1, 9)


LOADERS = {"sequential": SequentialRows, "coprime": CoprimeRows, "rows": ShuffledRows}


@pytest.mark.parametrize("skipped", [0, 1, 9, 70])
@pytest.mark.parametrize("kind", LOADERS)
def test_skipping_equals_taking(tmp_path, kind, skipped):
    paths = shards(tmp_path, [200, 90, 55])
    taken, jumped = (LOADERS[kind](paths, 2, 8, 1, 2) for _ in range(2))
    for _ in range(skipped):
        next(taken)
    jumped.skip(skipped)
    assert all(equal(next(taken), next(jumped)) for _ in range(20))


@pytest.mark.parametrize("kind", [*LOADERS, "packed"])
def test_ranks_in_turn_are_the_ranks(tmp_path, kind):
    """One process that follows the order of three reads what each of the three would."""
    paths = shards(tmp_path, [300, 240, 200])
    make = PackedDocuments if kind == "packed" else LOADERS[kind]
    alone, together = ([make(paths, 2, 8, rank, 3) for rank in range(3)] for _ in range(2))
    turn = InTurn(together)
    for _ in range(15):
        for loader in alone:
            assert equal(next(loader), next(turn))
    for skipped in (0, 1, 2, 3, 7):
        ahead, slow = (InTurn([make(paths, 2, 8, rank, 3) for rank in range(3)]) for _ in range(2))
        for stream in (ahead, slow):
            next(stream)
        ahead.skip(skipped)
        for _ in range(skipped):
            next(slow)
        assert all(equal(next(ahead), next(slow)) for _ in range(8))


class Counted:
    """Batches whose only value is their number; fails at `end`; knows which threads asked."""

    def __init__(self, end=10**6):
        self.n, self.end, self.threads = 0, end, set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.current_thread().name)
        if self.n == self.end:
            raise InputError("no more")
        self.n += 1
        return Batch(torch.tensor([[self.n - 1]]), torch.tensor([[self.n]]), None)

    def skip(self, batches):
        self.n += batches


def test_prefetch_gives_the_same_batches_from_another_thread():
    inner = Counted()
    stream = Prefetch(inner, 3, pin=False)
    assert [int(next(stream).inputs) for _ in range(5)] == [0, 1, 2, 3, 4]
    stream._worker.submit(lambda: None).result()
    assert inner.n == 8  # three ahead
    assert len(inner.threads) == 1
    assert threading.main_thread().name not in inner.threads
    stream.skip(2)
    assert int(next(stream).inputs) == 7
    stream.skip(10)
    assert [int(batch.inputs) for batch in itertools.islice(stream, 2)] == [18, 19]
    stream.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_prefetch_skips_before_the_first_batch():
    stream = Prefetch(Counted(), 2, pin=False)
    stream.skip(4)
    assert int(next(stream).inputs) == 4
    stream.close()


def test_prefetch_raises_an_error_where_its_batch_would_be():
    stream = Prefetch(Counted(end=2), 4, pin=False)
    assert [int(next(stream).inputs) for _ in range(2)] == [0, 1]
    with pytest.raises(InputError, match="no more"):
        next(stream)
    stream.close()


def test_cutting_rows_keeps_every_token():
    inputs, targets = torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16)
    batch = Batch(inputs, targets, None)
    cut = cut_rows(batch, 4)
    assert cut.inputs.shape == (8, 4)
    assert cut.inputs[1].tolist() == [4, 5, 6, 7]
    assert torch.equal(cut.targets, cut.inputs + 1)
    assert cut_rows(batch, 16) is batch
    packed = batch._replace(cu_seqlens=torch.zeros(64, dtype=torch.int32))
    assert cut_rows(packed, 4) is packed
