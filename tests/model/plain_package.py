"""FlashAttention-4's backward function in plain torch, in the passes of the package, for packed rows whose query heads
share no key heads. Its sums of dq lie row by row.
"""

import itertools
import math

import torch

TILE = 128


def padded_rows(cu_seqlens):
    """(tokens, rows) of every document that has some, as slices."""
    for b, (start, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        first = (start + TILE * b) // TILE * TILE
        if end > start:
            yield slice(start, end), slice(first, first + end - start)


def _bwd_preprocess(out, dout, dpsum, lse, lse_log2, dq_accum, cu_seqlens_q, seqused_q, dlse, *_, fake_mode):
    for tokens, rows in padded_rows(cu_seqlens_q):
        dpsum[:, rows] = (out[tokens] * dout[tokens]).sum(-1).T
        lse_log2[:, rows] = lse[:, tokens] / math.log(2)
        dq_accum.unflatten(1, (-1, out.size(-1)))[:, rows] = 0


def _bwd_postprocess_convert(accum, output, scale, cu_seqlens, *_, fake_mode):
    for tokens, rows in padded_rows(cu_seqlens):
        output[tokens] = (accum.unflatten(1, (-1, output.size(-1)))[:, rows] * scale).transpose(0, 1)


def backward(
    q, k, v, out, dout, lse, softmax_scale=None, causal=False, cu_seqlens_q=None, cu_seqlens_k=None,
    max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None,
):  # fmt: skip
    assert causal
    assert q.shape == k.shape == dq.shape
    length, heads, dim = q.shape
    total = (length + len(cu_seqlens_q) * TILE - 1) // TILE * TILE
    sums, (dpsum, lse_log2) = q.new_full((heads, total * dim), math.nan), q.new_full((2, heads, total), math.nan)
    _bwd_preprocess(out, dout, dpsum, lse, lse_log2, sums, cu_seqlens_q, None, None, fake_mode=False)
    for tokens, rows in padded_rows(cu_seqlens_q):
        queries, keys, values, upstream = (tensor[tokens] for tensor in (q, k, v, dout))
        scores = torch.einsum("ihd,jhd->hij", queries, keys) * (softmax_scale / math.log(2))
        p = torch.exp2(scores - lse_log2[:, rows, None]).tril()
        ds = p * (torch.einsum("ihd,jhd->hij", upstream, values) - dpsum[:, rows, None])
        sums.unflatten(1, (-1, dim))[:, rows] += torch.einsum("hij,jhd->hid", ds, keys)
        dk[tokens] = torch.einsum("hij,ihd->jhd", ds, queries) * softmax_scale
        dv[tokens] = torch.einsum("hij,ihd->jhd", p, upstream)
    _bwd_postprocess_convert(sums, dq, softmax_scale, cu_seqlens_q, None, fake_mode=False)
    return dq, dk, dv
