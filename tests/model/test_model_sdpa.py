"""Document masking in one call, against a call per document."""

import math

import pytest
import torch

from pgolf.model import sdpa

CASES = {
    "several blocks, the last one short": ([0, 3, 4, 9, 16, 17, 24, 24, 24], 7),
    "blocks and documents coincide": ([0, 6, 12, 18], 6),
    "a document ends where a block begins": ([0, 5, 10, 14, 15], 5),
    "a bound that no document reaches": ([0, 2, 5, 8], 6),
    "a bound longer than the row": ([0, 4, 11, 11], 64),
    "one document": ([0, 9], 9),
    "single tokens": (list(range(8)), 1),
    "an empty document inside": ([0, 4, 4, 10], 6),
}


def inputs(length, heads, kv_heads, dtype=torch.float64):
    torch.manual_seed(length)
    return [torch.randn(1, length, n, 4, dtype=dtype, requires_grad=True) for n in (heads, kv_heads, kv_heads)]


def masked(q, k, v, bounds):
    """Softmax over an explicit mask of the whole row."""
    length = q.size(1)
    position = torch.arange(length)
    document = sum((position >= start).long() for start in bounds)
    allowed = (document[:, None] == document) & (position[:, None] >= position)
    k, v = (tensor.repeat_interleave(q.size(2) // tensor.size(2), dim=2) for tensor in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.size(-1))
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~allowed, -math.inf).softmax(-1), v)


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2), (3, 1)])
@pytest.mark.parametrize(("bounds", "longest"), CASES.values(), ids=CASES)
def test_blocks_equal_an_explicit_mask_and_a_call_per_segment(bounds, longest, heads, kv_heads):
    qkv = inputs(bounds[-1], heads, kv_heads)
    dy = torch.randn_like(qkv[0])
    cu = torch.tensor(bounds, dtype=torch.int32)
    found = []
    for y in (masked(*qkv, bounds), sdpa.blocked(*qkv, cu, longest), sdpa.per_segment(*qkv, cu)):
        assert y.shape == qkv[0].shape
        found.append((y, *torch.autograd.grad(y, qkv, dy)))
    for result in found[1:]:
        for got, want in zip(result, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_blocks_in_single_precision():
    qkv = inputs(50, 4, 2, torch.float32)
    bounds = [0, 1, 13, 26, 39, 50]
    y = sdpa.blocked(*qkv, torch.tensor(bounds, dtype=torch.int32), 13)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, masked(*qkv, bounds), rtol=1e-5, atol=1e-6)


def test_random_documents():
    torch.manual_seed(1)
    for _ in range(20):
        longest = int(torch.randint(1, 9, ()))
        bounds = [0, *torch.randint(0, longest + 1, (10,)).cumsum(0).tolist()]
        if bounds[-1] == 0:
            continue
        qkv = inputs(bounds[-1], 2, 1)
        y = sdpa.blocked(*qkv, torch.tensor(bounds, dtype=torch.int32), longest)
        torch.testing.assert_close(y, masked(*qkv, bounds), rtol=1e-9, atol=1e-11)


def test_memory_grows_with_the_bound_and_not_with_the_square_of_the_row():
    mask = sdpa._block_mask(torch.tensor([0, 8, 16, 64], dtype=torch.int32), 64, 8, torch.float32)
    assert mask.numel() == 64 * 2 * 8
    assert mask.dtype == torch.float32


def test_a_cpu_has_no_flash_attention():
    assert not sdpa.has_flash(torch.device("cpu"), torch.bfloat16)
