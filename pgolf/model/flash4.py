"""FlashAttention-4 (package flash-attn-4, Hopper and Blackwell) as operators that torch.compile sees as one node each.

The package's own autograd functions cannot be traced, so its forward and backward kernels are wrapped here
(Zadouri et al. 2026, github.com/Dao-AILab/flash-attention, `flash_attn.cute`). They are compiled when first called,
about four seconds each; FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 keeps them between runs. The order of additions to
dq is not fixed: gradients of two runs differ in the last bits.

Layouts: packed rows [T, heads, D] with cu_seqlens int32 [n + 1], or [B, T, heads, D] without; D a multiple of 8.
Query head h reads KV head h // (H / Hkv). The log-sum-exp is float32 [H, T] or [B, H, T].
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _load() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The two kernels, or None without a GPU or the package."""
    if not torch.cuda.is_available():
        return None
    try:
        from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
    except ModuleNotFoundError:
        return None
    except Exception as error:  # installed for another CUDA or another compiler: every library of it raises its own
        warnings.warn(f"flash-attn-4 is installed and does not load ({error}): attention goes without", stacklevel=2)
        return None
    warnings.filterwarnings("ignore", "Argument aux_data", UserWarning)  # an unused argument, once per kernel
    return _flash_attn_fwd, _flash_attn_bwd


kernels = _load()


def lengths(cu_seqlens: Tensor | None, longest: int) -> dict[str, Any]:
    """How the package's functions are told of segments."""
    if cu_seqlens is None:
        return {}
    return {
        "cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": longest, "max_seqlen_k": longest,
    }  # fmt: skip


@torch.library.custom_op("pgolf::flash4_forward", mutates_args=())
def forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """Causal attention: output in the layout of q, and the log-sum-exp of each query's scores."""
    assert kernels is not None
    result = kernels[0](
        q, k, v, softmax_scale=q.size(-1) ** -0.5, causal=True, return_lse=True, **lengths(cu_seqlens, longest)
    )
    return result[0], result[1]


@forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    *batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((*batch, heads, tokens), dtype=torch.float32)


@torch.library.custom_op("pgolf::flash4_backward", mutates_args=())
def backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous."""
    assert kernels is not None
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in (q, k, v))
    kernels[1](
        q, k, v, y, dy.contiguous(), lse, softmax_scale=q.size(-1) ** -0.5, causal=True, dq=dq, dk=dk, dv=dv,
        **lengths(cu_seqlens, longest),
    )  # fmt: skip
    return dq, dk, dv


@backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.longest = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, dy: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, y, lse, cu_seqlens = ctx.saved_tensors
    return *backward(dy, q, k, v, y, lse, cu_seqlens, ctx.longest), None, None


forward.register_autograd(_gradients, setup_context=_save)


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None, longest: int = 0) -> Tensor:
    """Causal attention of [B, T, H, D] on [B, T, Hkv, D]; with cu_seqlens on [T, heads, D], inside each segment."""
    y: Tensor = forward(q, k, v, cu_seqlens, longest)[0]
    return y
