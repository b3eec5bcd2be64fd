import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.batches import document_boundaries

ROWS = st.lists(st.sampled_from([1, 5, 6, 7]), min_size=1, max_size=300).map(np.array)


def slow_boundaries(tokens, max_document):
    """Walk over the row and start a segment wherever one must start."""
    starts, used = [], 0
    for position, token in enumerate(tokens):
        if position == 0 or token == 1 or used == max_document:
            starts.append(position)
            used = 0
        used += 1
    boundaries = [*starts, len(tokens)]
    while len(boundaries) % 64:
        boundaries.append(len(tokens))
    return boundaries


@given(tokens=ROWS, max_document=st.integers(1, 20))
def test_equals_a_walk_over_the_row(tokens, max_document):
    boundaries = document_boundaries(tokens, max_document)
    assert boundaries.dtype == torch.int32
    assert boundaries.tolist() == slow_boundaries(tokens, max_document)


def test_length_grows_by_buckets_and_always_has_the_end():
    for documents in (62, 63, 64, 127):
        boundaries = document_boundaries(np.ones(documents, dtype=np.uint16), 10)
        assert len(boundaries) == 64 * (1 + documents // 64)
        assert boundaries[-1] == documents


def test_cuts_count_from_the_start_of_each_document():
    tokens = np.array([9, 9, 9, 9, 9, 1, 9, 9, 9, 9, 1, 9])
    assert document_boundaries(tokens, 4).tolist()[:6] == [0, 4, 5, 9, 10, 12]
