"""The attention seam: the only file that knows which kernel runs.

    attend(q, k, v)            causal attention inside each row
    attend(q, k, v, segments)  causal attention inside each segment (document) of one packed row

Softmax scale 1/sqrt(D); query head h reads KV head h // (heads / kv_heads).
"""

import contextlib
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

varlen_attn: Callable[..., Any] | None = None
if torch.cuda.is_available():  # without a GPU it is of no use, and importing it pulls in the whole compiler: 8 seconds
    with contextlib.suppress(ImportError):  # torch before 2.10
        from torch.nn.attention.varlen import varlen_attn

VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()
"""torch 2.11 says `is_causal` and has no grouped heads; from 2.12 a window of (-1, 0) is causal."""


class Segments(NamedTuple):
    """Boundaries of documents inside one packed row of T tokens."""

    cu_seqlens: Tensor
    """int32 [n + 1]: starts of the segments, then T, possibly repeated (empty segments)."""
    longest: int
    """Upper bound of a segment's length in tokens."""


def backend(device: torch.device, dtype: torch.dtype) -> str:
    """Kernel for packed rows: `varlen` (torch's variable-length FlashAttention) or `sdpa` (a call per segment)."""
    if device.type != "cuda" or varlen_attn is None or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    return "varlen" if torch.cuda.get_device_capability(device)[0] >= 8 else "sdpa"


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """Causal grouped-query attention.

    Args:
        q: [B, T, H, D]. k, v: [B, T, Hkv, D]. With segments B is 1.

    Returns:
        [B, T, H, D] in the dtype of q.
    """
    if segments is None:
        return _dense(q, k, v)
    if backend(q.device, q.dtype) == "varlen":
        return _varlen(q, k, v, segments)
    return _per_segment(q, k, v, segments)


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.size(2) != k.size(2)
    )
    return y.transpose(1, 2)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    group = q.size(2) // k.size(2)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in VARLEN_OPTIONS else {"is_causal": True}
    if "enable_gqa" in VARLEN_OPTIONS:
        options["enable_gqa"] = group > 1
    elif group > 1:
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    cu, longest = segments
    assert varlen_attn is not None
    y = varlen_attn(q[0], k[0], v[0], cu, cu, longest, longest, **options)
    assert isinstance(y, Tensor)
    return y[None]


def _per_segment(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    bounds = segments.cu_seqlens.tolist()
    spans = [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
    return torch.cat([_dense(q[:, a:b], k[:, a:b], v[:, a:b]) for a, b in spans], dim=1)
