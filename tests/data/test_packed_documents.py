import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data import packed_documents
from pgolf.data.batches import document_boundaries
from pgolf.data.packed_documents import PackedDocuments, first_bos
from pgolf.data.shards import shard_name, write_shard
from pgolf.errors import InputError


def shards(folder, streams):
    paths = [folder / shard_name("train", index) for index in range(len(streams))]
    for path, stream in zip(paths, streams, strict=True):
        write_shard(path, np.array(stream))
    return paths


def stream(length, seed, first=0):
    """Tokens from 2 up with a BOS about every 20, the first one at `first`."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 60000, length)
    tokens[rng.random(length) < 0.05] = 1
    tokens[:first] = 7
    tokens[first : first + 1] = 1
    return tokens


def slow_spans(streams, tokens, rank, world):
    """Twin: a cursor that walks over the shards, in order and then again."""
    while True:
        for shard in map(list, streams):
            cursor = shard.index(1) if 1 in shard else len(shard)
            while cursor + world * (tokens + 1) <= len(shard):
                yield shard[cursor + rank * (tokens + 1) : cursor + (rank + 1) * (tokens + 1)]
                cursor += world * (tokens + 1)


LAYOUTS = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 60)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(layout=LAYOUTS, tokens=st.integers(1, 40), max_document=st.integers(1, 30), world=st.integers(1, 3))
def test_equals_the_slow_twin_on_every_rank(tmp_path_factory, layout, tokens, max_document, world):
    streams = [stream(length, seed, first) for seed, (length, first) in enumerate(layout)]
    paths = shards(tmp_path_factory.mktemp("packed"), streams)
    enough = any(length - first >= world * (tokens + 1) for length, first in layout)
    for rank in range(world):
        if not enough:
            with pytest.raises(InputError):
                PackedDocuments(paths, tokens, max_document, rank, world)
            continue
        loader, twin = (
            PackedDocuments(paths, tokens, max_document, rank, world),
            slow_spans(streams, tokens, rank, world),
        )
        for batch, span in itertools.islice(zip(loader, twin, strict=False), 30):
            assert batch.inputs.tolist() == [span[:-1]]
            assert batch.targets.tolist() == [span[1:]]
            assert torch.equal(batch.cu_seqlens, document_boundaries(np.array(span[:-1]), max_document))


def test_segments_hold_a_bos_only_at_their_start_and_are_never_too_long(tmp_path):
    loader = PackedDocuments(shards(tmp_path, [stream(5000, 0), stream(3000, 1, 13)]), 256, 10)
    seen_cut = seen_bos = False
    for batch in itertools.islice(loader, 40):
        assert batch.inputs.shape == batch.targets.shape == (1, 256)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert torch.equal(batch.inputs[0, 1:], batch.targets[0, :-1])
        assert batch.cu_seqlens.dtype == torch.int32
        assert len(batch.cu_seqlens) % 64 == 0
        ends = batch.cu_seqlens.tolist()
        assert (ends[0], ends[-1]) == (0, 256)
        for start, end in itertools.pairwise(ends):
            segment = batch.inputs[0, start:end].tolist()
            assert 1 not in segment[1:]
            assert len(segment) <= 10
            seen_bos |= segment[:1] == [1]
            seen_cut |= len(segment) == 10
    assert seen_cut
    assert seen_bos


def test_ranks_share_no_token_and_together_read_without_gaps(tmp_path):
    tokens = np.arange(2, 1002)
    tokens[0] = 1
    paths = shards(tmp_path, [tokens])
    spans = []
    loaders = [PackedDocuments(paths, 32, 16, rank, 3) for rank in range(3)]
    for _ in range(1000 // (3 * 33)):
        for loader in loaders:
            batch = next(loader)
            spans += [*batch.inputs[0].tolist(), int(batch.targets[0, -1])]
    assert spans == tokens[: len(spans)].tolist()
    assert next(loaders[0]).inputs[0, 0] == 1  # the rest is dropped, the first shard comes again


@pytest.mark.parametrize("skipped", [0, 1, 5, 33, 1000])
def test_skipping_equals_taking(tmp_path, skipped):
    paths = shards(tmp_path, [stream(500, 0), stream(20, 1), stream(300, 2, 9)])
    taken, jumped = PackedDocuments(paths, 30, 8, 1, 2), PackedDocuments(paths, 30, 8, 1, 2)
    for _ in range(skipped):
        next(taken)
    jumped.skip(skipped)
    for _ in range(12):
        assert all(torch.equal(a, b) for a, b in zip(next(taken), next(jumped), strict=True))


def test_first_bos_is_found_across_scans(monkeypatch):
    monkeypatch.setattr(packed_documents, "SCAN_TOKENS", 4)
    for position in range(11):
        tokens = np.full(11, 9, dtype=np.uint16)
        tokens[position:] = 1
        assert first_bos(tokens) == position
    assert first_bos(np.full(11, 9, dtype=np.uint16)) == 11


def test_too_little_data(tmp_path):
    paths = shards(tmp_path, [stream(100, 0), stream(60, 1)])
    assert next(PackedDocuments(paths, 49, 8, 1, 2))
    with pytest.raises(InputError, match=r"no training shard holds the 102 tokens .* the longest has 100"):
        PackedDocuments(paths, 50, 8, 1, 2)


def test_shards_without_bos(tmp_path):
    silent = np.full(500, 9)
    with pytest.raises(InputError, match=r"none of the 2 training shards holds a BOS \(id 1\)"):
        PackedDocuments(shards(tmp_path, [silent, silent]), 16, 8)
    # The tail of one long document is no error: it is only never the start of a row.
    loader = PackedDocuments(shards(tmp_path, [silent, stream(100, 0)]), 16, 8)
    for _ in range(2):  # round the shards twice, five batches each time
        rows = [next(loader).inputs[0] for _ in range(5)]
        assert torch.cat(rows)[[0, 16, 32, 48, 64]].tolist() == stream(100, 0)[[0, 17, 34, 51, 68]].tolist()
