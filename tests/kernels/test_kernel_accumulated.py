"""Rows of attention's backward kernel, and gradients of queries read as that kernel adds them up."""

import itertools
import math

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from query_sums import as_added_up

from pgolf.kernels import heads, heads_accumulated
from pgolf.kernels.attention_rows import Rows, rows_of

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
BOUNDS = [0, 130, 131, 131, 170, 170, 170]  # over a tile, a single token, empty ones between and at the end


def rows_by_hand(bounds):
    """(row, token) of every token, in order."""
    found = []
    for b, (start, end) in enumerate(itertools.pairwise(bounds)):
        first = (start + 128 * b) // 128 * 128
        found += [(first + i, start + i) for i in range(end - start)]
    return found


def boundaries(bounds=BOUNDS):
    return torch.tensor(bounds, dtype=torch.int32, device=DEVICE)


def test_every_token_has_its_row():
    token_of = rows_of(boundaries(), BOUNDS[-1]).token_of
    assert token_of.dtype == torch.int32
    assert len(token_of) == (170 + 7 * 128 - 1) // 128 * 128
    expected = rows_by_hand(BOUNDS)
    assert [(row, token) for row, token in enumerate(token_of.tolist()) if token >= 0] == expected
    assert [token for _, token in expected] == list(range(170))


def test_no_tile_holds_two_documents():
    torch.manual_seed(0)
    lengths = torch.randint(400, (40,)) * torch.randint(2, (40,))
    bounds = [0, *lengths.cumsum(0).tolist(), *[int(lengths.sum())] * 5]
    token_of = rows_of(boundaries(bounds), bounds[-1]).token_of.cpu()
    assert sorted(token_of[token_of >= 0].tolist()) == list(range(bounds[-1]))
    document = torch.searchsorted(torch.tensor(bounds[1:]), token_of, right=True)
    for tile, inside in zip(document.view(-1, 128), token_of.view(-1, 128) >= 0, strict=True):
        assert len(set(tile[inside].tolist())) < 2


def test_what_the_kernel_reads():
    torch.manual_seed(0)
    rows, parts, kv_heads, dim = rows_of(boundaries(), BOUNDS[-1]), 2, 2, 32
    delta, lse = torch.randn(170, parts * kv_heads, device=DEVICE), torch.randn(parts * kv_heads, 170, device=DEVICE)
    size = len(rows.token_of)
    dpsum, lse_log2 = torch.full((2, kv_heads, size), math.nan, device=DEVICE)
    sums = torch.full((kv_heads, size * dim), math.nan, device=DEVICE)
    rows.prepare(delta[:, 1::parts], lse[1::parts], dpsum, lse_log2, sums)
    for row, token in rows_by_hand(BOUNDS):
        assert torch.equal(dpsum[:, row], delta[token, 1::parts])
        torch.testing.assert_close(lse_log2[:, row], lse[1::parts, token] / math.log(2))
    empty = rows.token_of < 0
    used = (~empty).view(-1, 128).any(1)
    assert not dpsum[:, empty].nan_to_num().any()
    assert lse_log2.unflatten(1, (-1, 128))[:, used].flatten(1)[:, empty.view(-1, 128)[used].flatten()].isposinf().all()
    assert (sums.unflatten(1, (-1, 128 * dim)) == 0).all(2).eq(used).all()


@pytest.mark.parametrize(("head_dim", "half", "rows_at_once", "multiplied"), [(64, 8, 16, False), (32, 16, 32, True)])
def test_gradients_of_what_is_added_up(head_dim, half, rows_at_once, multiplied, monkeypatch):
    """Those of `heads_backward`, which the tests of passes compare with float64."""
    monkeypatch.setattr(heads_accumulated, "ROWS", rows_at_once)
    torch.manual_seed(0)
    tokens, parts = BOUNDS[-1], 2
    shape, rows = heads.Shape(4, 2, head_dim, tokens), rows_of(boundaries(), tokens)
    width = (shape.heads + 2 * shape.kv_heads) * head_dim
    gain, angles = torch.randn(shape.heads, device=DEVICE), torch.randn(tokens, half, device=DEVICE)
    gain[0], tables = 0.0, (angles.cos(), angles.sin())
    y = torch.randn(tokens, width, device=DEVICE)
    inverse = heads.heads_forward(y, gain, *tables, shape)
    dq = torch.randn(tokens, shape.heads, head_dim, device=DEVICE, dtype=torch.float64)
    dk, dv = torch.randn(2, parts, tokens, shape.kv_heads, head_dim, device=DEVICE)
    dv2 = torch.randn(tokens, shape.kv_heads, head_dim, device=DEVICE)
    factor = torch.rand(tokens, device=DEVICE) if multiplied else None
    found, expected = torch.full((2, tokens, width + 16), 5.0, device=DEVICE)
    common, other = torch.zeros(2, tokens, shape.kv_heads, device=DEVICE)
    rest = dv2, y, inverse, gain, *tables, shape
    sums = [as_added_up(dq[:, part::parts], rows, head_dim**-0.5) for part in range(parts)]
    dgain = heads_accumulated.heads_backward_of_sums((sums, dk, dv), rows, *rest, found, factor, common)
    wanted = heads.heads_backward((dq.float(), dk, dv), *rest, expected, factor, other)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(dgain.sum(0), wanted.sum(0), rtol=1e-5, atol=1e-4)
    assert torch.equal(common, other)


def test_only_whole_blocks_are_rotated():
    assert heads_accumulated.fits(8, 64)
    assert heads_accumulated.fits(32, 64)
    assert not any(heads_accumulated.fits(half, 64) for half in (0, 2, 4, 12, 64))


def test_rows_are_shared_and_made_anew():
    """Between the layers of a forward pass; the next pass has other documents."""
    from pgolf.model.attention import Segments
    from pgolf.train.fused_model import Chain

    chain, first, second = Chain(), torch.zeros(1, 170, 4), torch.zeros(1, 170, 4)
    chain.take(first)
    rows = chain.rows(Segments(boundaries(), 130), 170)
    chain.take(first)
    assert chain.rows(Segments(boundaries(), 130), 170) is rows
    chain.take(second)
    assert isinstance(chain.rows(Segments(boundaries([0, 170]), 170), 170), Rows)
    assert len(chain.rows(Segments(boundaries([0, 170]), 170), 170).token_of) == 384
