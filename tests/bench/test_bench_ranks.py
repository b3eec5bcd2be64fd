"""What the comparison of several ranks is made of, against counts of every microsecond."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from pgolf.bench.overlap import Collective, collectives, communication, covered, union
from pgolf.bench.ranks import batches_of, different, worlds
from pgolf.data.batches import Batch


def event(name, start, end, device="CUDA", mark=False):
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        time_range=SimpleNamespace(start=start, end=end),
        is_user_annotation=mark,
    )


def test_spans_cover_what_their_points_cover():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        starts = torch.randint(0, 60, (8,), generator=generator).tolist()
        spans = [(a, a + int(torch.randint(0, 12, (), generator=generator))) for a in starts]
        points = {point for a, b in spans for point in range(a, b)}
        found = union(spans)
        assert {point for a, b in found for point in range(a, b)} == points
        assert all(b < c for (_, b), (c, _) in itertools.pairwise(found))
        assert covered((20, 45), found) == len(points & set(range(20, 45)))


def test_collectives_are_told_from_what_runs_beside_them():
    events = [
        event("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 5000, 9000),
        event("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 0, 3000),
        event("gemm", 2000, 6000),
        event("Memcpy DtoD", 5500, 7000),
        event("nccl:all_gather", 0, 9000, mark=True),
        event("step", 0, 9000, mark=True),
        event("c10d::allreduce_", 0, 9000),  # what starts one
        event("aten::mm", 0, 9000, "CPU"),
    ]
    assert collectives(events, "cuda") == [(3.0, 1.0), (4.0, 2.0)]
    assert collectives(events, "cpu") == []


def test_waiting_is_not_communication():
    late, early = [Collective(1.0, 0.5), Collective(2.0, 2.0)], [Collective(5.0, 0.1), Collective(2.5, 2.2)]
    found = communication([late, early], 2)
    assert found == pytest.approx((3.0 / 2, 2.5 / 2, (10.5 / 2 - 3.0) / 2))
    assert communication([late, early[:1]], 2) is None, "events were lost"
    assert communication([[], []], 2) == (0, 0, 0)


@pytest.mark.parametrize(("count", "expected"), [(2, [1, 2]), (3, [1, 2, 3]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_powers_of_two_and_all_are_measured(count, expected):
    assert worlds(count) == expected


def test_a_batch_that_cannot_be_shared_out_is_left_out():
    assert batches_of(2, 1) == [1]
    assert batches_of(2, 2) == [1, 2]
    assert batches_of(2, 4) == [4]


def test_every_number_of_boundaries_is_one_kind():
    row = torch.zeros(1, 8, dtype=torch.int64)
    lengths = (64, 128, 64, 128, 192)
    batches = [Batch(row, row, torch.zeros(length, dtype=torch.int32)) for length in lengths]
    assert different(iter(batches)) == [batches[0], batches[1], batches[4]]
    assert len(different(iter([Batch(row, row, None)] * 3))) == 1
