"""The attention seam: the only file that knows which kernel runs.

    attend(q, k, v)            causal attention inside each row
    attend(q, k, v, segments)  causal attention inside each segment (document) of one packed row

Softmax scale 1/sqrt(D); query head h reads KV head h // (heads / kv_heads).
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.model import flash4, sdpa

varlen_attn: Callable[..., Any] | None = None
if torch.cuda.is_available():  # without a GPU it is of no use, and importing it pulls in the whole compiler: 8 seconds
    with contextlib.suppress(ImportError):  # torch before 2.10
        from torch.nn.attention.varlen import varlen_attn


def _flash_libraries() -> dict[str, Any]:
    """FlashAttention 3 and 2; both are seen by torch.compile as they are."""
    found = {}
    if torch.cuda.is_available():
        with contextlib.suppress(ImportError):
            import flash_attn_interface

            found["fa3"] = flash_attn_interface
        with contextlib.suppress(ImportError):
            import flash_attn

            if hasattr(flash_attn, "flash_attn_varlen_func"):  # FlashAttention-4 alone makes such a folder too
                found["fa2"] = flash_attn
    return found


flash_libraries = _flash_libraries()

VARLEN_OPTIONS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()
"""torch 2.11 says `is_causal` and has no grouped heads; from 2.12 a window of (-1, 0) is causal."""

_forced: str | None = None
_rounded = False


class Segments(NamedTuple):
    """Boundaries of documents inside one packed row of T tokens."""

    cu_seqlens: Tensor
    """int32 [n + 1]: starts of the segments, then T, possibly repeated (empty segments)."""
    longest: int
    """Upper bound of a segment's length in tokens."""


def present(device: torch.device, dtype: torch.dtype, head_dim: int, packed: bool = True) -> list[str]:
    """The back ends that can run, best first.

    `fa4`, `fa3`, `fa2`: FlashAttention where installed. `varlen`: torch's variable-length attention, for packed rows.
    `sdpa`: scaled_dot_product_attention, which always can.
    """
    if head_dim % 8 or head_dim > 256 or not sdpa.has_flash(device, dtype):
        return ["sdpa"]
    generation = torch.cuda.get_device_capability(device)[0]
    able = {
        "fa4": flash4.kernels is not None and (generation == 9 or (generation == 10 and head_dim <= 128)),
        "fa3": "fa3" in flash_libraries and generation == 9,
        "fa2": "fa2" in flash_libraries,
        "varlen": varlen_attn is not None and packed,
        "sdpa": True,
    }
    return [name for name, can in able.items() if can]


def backend(device: torch.device, dtype: torch.dtype, head_dim: int = 64, packed: bool = True) -> str:
    """The back end that `attend` takes."""
    return present(device, dtype, head_dim, packed)[0] if _forced is None else _forced


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Force a back end that is present, for tests and measurements."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextlib.contextmanager
def rounded() -> Iterator[None]:
    """Attention of float32 in bfloat16, for which alone there are fast kernels."""
    global _rounded
    before, _rounded = _rounded, True
    try:
        yield
    finally:
        _rounded = before


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None) -> Tensor:
    """Causal grouped-query attention.

    Args:
        q: [B, T, H, D]. k, v: [B, T, Hkv, D], or [B, P + T, Hkv, D] with the P tokens before, which every query sees.
            With segments B is 1 and P is 0.

    Returns:
        [B, T, H, D] in the dtype of q.
    """
    if _rounded and q.dtype == torch.float32:
        return attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), segments).float()
    name = backend(q.device, q.dtype, q.size(-1), segments is not None)
    return _dense(name, q, k, v) if segments is None else _packed(name, q, k, v, segments)


def _dense(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if name == "fa4":
        return flash4.attend(q, k, v)
    if name in ("fa3", "fa2"):
        return _output(flash_libraries[name].flash_attn_func(q, k, v, causal=True))
    return sdpa.dense(q, k, v)


def _packed(name: str, q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    cu, longest = segments
    row = q.squeeze(0), k.squeeze(0), v.squeeze(0)  # the gradient of q[0] would be a copy into zeros
    if name == "fa4":
        return flash4.attend(*row, cu, longest)[None]
    if name in ("fa3", "fa2"):
        kernel = flash_libraries[name].flash_attn_varlen_func
        return _output(kernel(*row, cu, cu, longest, longest, causal=True))[None]
    if name == "varlen":
        return _varlen(q, k, v, segments)
    if q.device.type == "cuda":
        return sdpa.blocked(q, k, v, cu, longest)
    return sdpa.per_segment(q, k, v, cu)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    group = q.size(2) // k.size(2)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in VARLEN_OPTIONS else {"is_causal": True}
    if "enable_gqa" in VARLEN_OPTIONS:
        options["enable_gqa"] = group > 1
    elif group > 1:
        k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    cu, longest = segments
    assert varlen_attn is not None
    row = q.squeeze(0), k.squeeze(0), v.squeeze(0)
    return _output(varlen_attn(*row, cu, cu, longest, longest, **options))[None]


def _output(result: Any) -> Tensor:
    """Some versions of FlashAttention 3 return the log-sum-exp as well."""
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y
