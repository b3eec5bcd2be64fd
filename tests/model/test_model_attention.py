import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from pgolf.model import attention
from pgolf.model.attention import Segments, attend, using
from pgolf.model.blocks import exclusive

HEADS, KV_HEADS, SIZE = 6, 2, 8


def qkv(rows=2, length=11, kv_heads=KV_HEADS):
    torch.manual_seed(0)
    return (
        torch.randn(rows, length, HEADS, SIZE),
        torch.randn(rows, length, kv_heads, SIZE),
        torch.randn(rows, length, kv_heads, SIZE),
    )


def masked(q, k, v, allowed):
    """Softmax over an explicit mask [T, T], one head at a time; query head h reads KV head h // group."""
    group = q.size(2) // k.size(2)
    heads = []
    for h in range(q.size(2)):
        scores = q[:, :, h] @ k[:, :, h // group].mT / math.sqrt(q.size(3))
        heads.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[:, :, h // group])
    return torch.stack(heads, dim=2)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_dense_equals_an_explicit_causal_mask(kv_heads):
    q, k, v = qkv(kv_heads=kv_heads)
    causal = torch.ones(q.size(1), q.size(1), dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v), masked(q, k, v, causal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_segments_equal_a_block_diagonal_mask(kv_heads):
    q, k, v = qkv(rows=1, kv_heads=kv_heads)
    document = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3])
    allowed = torch.ones(11, 11, dtype=torch.bool).tril() & (document[:, None] == document)
    segments = Segments(torch.tensor([0, 3, 4, 9, 11, 11, 11], dtype=torch.int32), 5)
    torch.testing.assert_close(attend(q, k, v, segments), masked(q, k, v, allowed), rtol=1e-5, atol=1e-5)


def test_each_document_is_as_if_alone():
    q, k, v = qkv(rows=1)
    bounds = [0, 4, 5, 5, 11, 11]
    y = attend(q, k, v, Segments(torch.tensor(bounds, dtype=torch.int32), 6))
    assert y.shape == q.shape
    for a, b in ((0, 4), (4, 5), (5, 11)):
        torch.testing.assert_close(y[:, a:b], attend(q[:, a:b], k[:, a:b], v[:, a:b]), rtol=1e-6, atol=1e-6)


def test_gradients_stay_inside_a_document():
    q, k, v = (tensor.requires_grad_() for tensor in qkv(rows=1))
    attend(q, k, v, Segments(torch.tensor([0, 4, 11, 11], dtype=torch.int32), 7))[:, :4].sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad[:, :4].abs().max() > 0 or tensor is q
        assert tensor.grad[:, 4:].abs().max() == 0


def test_grouped_heads_share_in_order():
    """With one position, attention returns the value itself: head h must get that of KV head h // 3."""
    q, k, v = qkv(rows=1, length=1)
    y = attend(q, k, v)
    for h in range(HEADS):
        torch.testing.assert_close(y[0, 0, h], v[0, 0, h // (HEADS // KV_HEADS)])


def test_exclusive_output_is_orthogonal_to_the_own_value():
    q, k, v = qkv()
    y = attend(q, k, v)
    out = exclusive(y, v)
    group = HEADS // KV_HEADS
    for h in range(HEADS):
        value = v[:, :, h // group]
        before, after = (y[:, :, h] * value).sum(-1), (out[:, :, h] * value).sum(-1)
        assert before.abs().max() > 0.1
        assert after.abs().max() < 1e-5
        removed = y[:, :, h] - out[:, :, h]  # along the value, and nothing else
        cosine = F.cosine_similarity(removed, value, dim=-1).abs()
        torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-4, atol=1e-4)


def test_exclusive_is_a_projection_and_keeps_a_zero_value_finite():
    v = qkv()[2]
    v[0, 3] = 0
    y = torch.randn(2, 11, HEADS, SIZE)
    once = exclusive(y, v)
    torch.testing.assert_close(exclusive(once, v), once, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(once[0, 3], y[0, 3])


def test_exclusive_passes_gradients_to_the_value():
    y, v = torch.randn(1, 2, 2, 4, dtype=torch.float64), torch.randn(1, 2, 1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(exclusive, (y.requires_grad_(), v.requires_grad_()))


def slow_varlen(q, k, v, cu_q, cu_k, longest_q, longest_k, *, window_size):
    """What the kernel promises, for equal numbers of heads: [T, H, D], each segment by itself, a window per query."""
    assert q.shape == k.shape == v.shape
    assert torch.equal(cu_q, cu_k)
    assert longest_q == longest_k >= cu_q.diff().max()
    left, right = window_size
    y = torch.zeros_like(q)
    for a, b in itertools.pairwise(cu_q.tolist()):
        for t in range(a, b):
            first = a if left < 0 else max(a, t - left)
            last = b if right < 0 else min(b, t + right + 1)
            scores = torch.einsum("hd,jhd->hj", q[t], k[first:last]) / math.sqrt(q.size(-1))
            y[t] = torch.einsum("hj,jhd->hd", scores.softmax(-1), v[first:last])
    return y


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_the_variable_length_kernel_is_called_for_the_same_result(monkeypatch, kv_heads):
    q, k, v = qkv(rows=1, kv_heads=kv_heads)
    segments = Segments(torch.tensor([0, 3, 4, 9, 11, 11, 11], dtype=torch.int32), 5)
    expected = attend(q, k, v, segments)
    monkeypatch.setattr(attention, "varlen_attn", slow_varlen)
    monkeypatch.setattr(attention, "VARLEN_OPTIONS", frozenset(inspect.signature(slow_varlen).parameters))
    with using("varlen"):
        torch.testing.assert_close(attend(q, k, v, segments), expected, rtol=1e-5, atol=1e-5)
