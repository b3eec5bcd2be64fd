"""Causal attention through torch's scaled_dot_product_attention, for every device and dtype.

`per_segment` is the plain form of document masking and the twin that tests compare with; `blocked` is the one that
compiles. q [B, T, H, D]; k, v [B, T, Hkv, D]; results like q. With segments B is 1.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's own FlashAttention runs: Ampere and later, 16 bit. It alone reads grouped heads in place."""
    half = dtype in (torch.bfloat16, torch.float16)
    return half and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention inside each row; with P more keys than queries, query i sees the first P + i + 1 of them."""
    past = k.size(1) - q.size(1)
    grouped = q.size(2) != k.size(2)
    if grouped and q.device.type == "cuda" and not has_flash(q.device, q.dtype):
        k, v, grouped = _repeat(k, q), _repeat(v, q), False  # otherwise all scores are written to memory
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask = _later(q, past) if past else None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=not past, enable_gqa=grouped).transpose(1, 2)


def _later(q: Tensor, past: int) -> Tensor:
    """Query i of q [B, H, T, D] sees the first `past` + i + 1 keys: [T, past + T]."""
    if has_flash(q.device, q.dtype):
        from torch.nn.attention.bias import causal_lower_right  # seconds: it loads the compiler

        return causal_lower_right(q.size(2), past + q.size(2))
    return torch.ones(q.size(2), past + q.size(2), dtype=torch.bool, device=q.device).tril(past)


def per_segment(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
    """A call per segment; the host reads the boundaries."""
    spans = [(a, b) for a, b in itertools.pairwise(cu_seqlens.tolist()) if b > a]
    return torch.cat([dense(q[:, a:b], k[:, a:b], v[:, a:b]) for a, b in spans], dim=1)


def blocked(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """One call for the row, cut in blocks of L = `longest` tokens: what a query may see begins at most L - 1 tokens
    before it, so the keys of its own and the preceding block suffice.

    The mask of T x 2 L entries is made once for all layers of a compiled graph.
    """
    tokens = q.size(1)
    block = -(-min(longest, tokens) // 8) * 8  # the kernel that reads a mask wants its rows aligned
    mask = _block_mask(cu_seqlens, tokens, block, q.dtype)
    k, v = (_two_blocks(_repeat(tensor, q)[0], block) for tensor in (k, v))
    blocks = mask.size(0)
    q = F.pad(q[0], (0, 0, 0, 0, 0, blocks * block - tokens)).view(blocks, block, *q.shape[2:]).transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).flatten(0, 1)[None, :tokens]


def _block_mask(cu_seqlens: Tensor, tokens: int, block: int, dtype: torch.dtype) -> Tensor:
    """0 where query i of a block may see key j of the two blocks, -inf elsewhere: [blocks, 1, block, 2 block]."""
    padded = -(-tokens // block) * block
    position = torch.arange(padded, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    segment = torch.searchsorted(cu_seqlens, position, right=True)  # the padding is a segment of its own
    before = F.pad(segment, (block, 0), value=-1).view(-1, block)
    same = before[1:, :, None] == torch.cat([before[:-1], before[1:]], dim=1)[:, None]
    causal = torch.ones(block, 2 * block, dtype=torch.bool, device=cu_seqlens.device).tril(block)
    return torch.zeros((), dtype=dtype, device=cu_seqlens.device).where(same & causal, -torch.inf)[:, None]


def _two_blocks(x: Tensor, block: int) -> Tensor:
    """[T, H, D] to [blocks, H, 2 block, D]: each block after its predecessor, which for the first is zeros."""
    blocks = -(-x.size(0) // block)
    x = F.pad(x, (0, 0, 0, 0, block, blocks * block - x.size(0))).view(blocks + 1, block, *x.shape[1:])
    return torch.cat([x[:-1], x[1:]], dim=1).transpose(1, 2)


def _repeat(x: Tensor, q: Tensor) -> Tensor:
    """A KV head for every query head."""
    return x.repeat_interleave(q.size(2) // x.size(2), dim=2)
