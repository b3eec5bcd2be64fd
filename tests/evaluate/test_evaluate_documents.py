"""The queue of documents: the published numbers, and what must hold for any lengths."""

import numpy as np
import pytest
from document_models import stream_of

from pgolf.evaluate.documents import boundaries, find_documents, plan_batches, plan_phases, share_out
from pgolf.evaluate.lora_ttt import passes


def published_queue():
    return plan_batches(np.random.default_rng(0).geometric(1 / 950, 50_000), 64)


def test_published_batches():
    targets = np.random.default_rng(0).geometric(1 / 950, 50_000)
    queue = plan_batches(targets, 64)
    assert len(queue) == 782
    assert [len(batch) for batch in queue] == [16, *[64] * 781]
    assert sorted(np.concatenate(queue)) == list(range(50_000))
    ascending = targets[np.concatenate(queue[::-1])]
    assert (np.diff(ascending) >= 0).all()
    assert targets[queue[0]].max() == targets.max()


def test_equal_lengths_stay_in_the_order_of_the_stream():
    assert [batch.tolist() for batch in plan_batches(np.array([5, 2, 5, 2, 5]), 2)] == [[4], [0, 2], [1, 3]]


def test_published_boundaries_and_counts():
    assert boundaries(2500, 3) == [833, 1666, 2500]
    assert boundaries(100, 3) == [33, 66, 100]
    sizes = [len(batch) for batch in published_queue()]
    ends = plan_phases(sizes, boundaries(2500, 3), 8)
    assert [sum(sizes[:end]) for end in ends] == [1296, 2128, 2960]  # as the published program logged
    assert plan_phases([35, *[64] * 12], boundaries(100, 3), 1) == [1, 2, 3]


def dynamic_counts(sizes, limits, ranks):
    """Ranks that all take equally long, a counter and a flag."""
    queue, scored, counts = list(sizes), 0, []
    limits = list(limits)
    while queue:
        running = [queue.pop(0) for _ in range(min(ranks, len(queue)))]
        flag = False
        while running:
            scored += running.pop(0)
            flag = flag or (bool(limits) and scored >= limits[0])
            if not flag and queue:
                running.append(queue.pop(0))
        if flag:
            limits.pop(0)
            counts.append(scored)
    return counts


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("prefix", [3, 40, 100, 333])
def test_phases_are_those_of_a_counter_and_a_flag(prefix, ranks):
    sizes, limits = [3, *[8] * 60], boundaries(prefix, 3)
    found = [sum(sizes[:end]) for end in plan_phases(sizes, limits, ranks)]
    assert found == dynamic_counts(sizes, limits, ranks)[: len(found)]
    assert len(found) == 3


def test_a_short_queue_has_fewer_phases_and_no_rank_waits_for_one():
    assert plan_phases([2, 4, 4], [3, 6, 9], 1) == [2]
    assert plan_phases([2, 4, 4], [3, 6, 9], 8) == []
    assert plan_phases([4], [1], 1) == []
    assert plan_phases([2, 4, 4], [11], 1) == []


def test_shares_hold_every_batch_once_and_balance():
    costs = [9.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0]
    shares = share_out(costs, 3)
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= 4
    assert share_out([5.0], 2) == [[0], []]


def test_documents_have_every_target_once():
    tokens = stream_of(5, 1, 7)
    documents = find_documents(tokens, 1)
    assert documents.start.tolist() == [0, 5, 6]
    assert documents.targets.tolist() == [5, 1, 7]
    assert documents.places().tolist() == list(range(13))
    assert documents.take(np.array([2, 0])).places().tolist() == [*range(6, 13), *range(5)]
    late = find_documents(np.array([7, 8, 1, 5], dtype=np.uint16), 1)
    assert (late.start.tolist(), late.targets.tolist()) == ([0, 2], [2, 1])


@pytest.mark.parametrize("length", [8, 9, 12])
def test_work_is_the_sum_of_widths(length):
    for targets in range(1, 40):
        ends = [min(position + 4, targets) for position in range(0, targets, 4)]
        widths = [min(end if end == targets else -(-end // 4) * 4, length) for end in ends]
        assert passes(np.array([targets]), 4, length) == sum(widths)
