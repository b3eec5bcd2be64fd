"""FlashAttention-4 (package flash-attn-4, Hopper and Blackwell) as operators that torch.compile sees as one node each.

The package's own autograd functions cannot be traced, so its forward and backward kernels are wrapped here
(Zadouri et al. 2026, github.com/Dao-AILab/flash-attention, `flash_attn.cute`). They are compiled when first called,
about four seconds each; FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 keeps them between runs. The order of additions to
dq is not fixed: gradients of two runs differ in the last bits.

Layouts: packed rows [T, heads, D] with cu_seqlens int32 [n + 1], or [B, T, heads, D] without; D a multiple of 8.
Query head h reads KV head h // (H / Hkv). The log-sum-exp is float32 [H, T] or [B, H, T].
"""

import contextlib
import functools
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pgolf.kernels.attention_rows import Rows

KNOWN = "4.0.0b36"
"""The version whose main backward kernel `gradients_in_sums` can call by itself."""


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


def _lengths(cu_seqlens: Tensor | None, longest: int) -> dict[str, Any]:
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
        q, k, v, softmax_scale=q.size(-1) ** -0.5, causal=True, return_lse=True, **_lengths(cu_seqlens, longest)
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
        **_lengths(cu_seqlens, longest),
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


def gradients_in_parts(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dq like q; dk and dv as H / Hkv parts [parts, *k.shape] that are to be added up: `backward`, and faster.

    Query heads that share key heads make the kernel add up dk and dv in float32 memory, which is zeroed before and
    converted after. Here a call takes one query head of every key head, as strided views, and writes its own part.
    """
    assert kernels is not None
    parts = q.size(-2) // k.size(-2)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(parts, *k.shape), v.new_empty(parts, *v.shape)
    lengths, scale = _lengths(cu_seqlens, longest), q.size(-1) ** -0.5
    for part in range(parts):
        queries, outputs, upstream, found = (tensor[..., part::parts, :] for tensor in (q, y, dy, dq))
        kernels[1](
            queries, k, v, outputs, upstream, lse[..., part::parts, :], softmax_scale=scale, causal=True, dq=found,
            dk=dk[part], dv=dv[part], **lengths,
        )  # fmt: skip
    return dq, dk, dv


@functools.cache
def _is_known() -> bool:
    with contextlib.suppress(PackageNotFoundError):
        return version("flash-attn-4") == KNOWN
    return False


def has_known_sums(device: torch.device, head_dim: int) -> bool:
    """Whether there is `gradients_in_sums`: on Hopper, for heads of 64, where the layout of its sums is known."""
    return head_dim == 64 and torch.cuda.get_device_capability(device)[0] == 9 and _is_known()


def gradients_in_sums(
    dy: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor,
    longest: int, rows: "Rows",
) -> tuple[list[Tensor], Tensor, Tensor]:  # fmt: skip
    """`gradients_in_parts` of packed rows without the package's passes around its main kernel: delta [T, H] float32 is
    the sum over D of dy . y, and dq / scale comes as that kernel adds it up (`pgolf.kernels.attention_rows`), in parts
    too, p for query heads p, p + parts, ..
    """
    parts = q.size(-2) // k.size(-2)
    dk, dv = k.new_empty(parts, *k.shape), v.new_empty(parts, *v.shape)
    found: list[Tensor] = []
    for part in range(parts):
        queries, outputs, upstream = (tensor[:, part::parts] for tensor in (q, y, dy))
        own = functools.partial(_before, rows, delta[:, part::parts], found)
        _between(own)(
            queries, k, v, outputs, upstream, lse[part::parts], softmax_scale=q.size(-1) ** -0.5, causal=True,
            dq=queries, dk=dk[part], dv=dv[part], **_lengths(cu_seqlens, longest),
        )  # fmt: skip
    return found, dk, dv


def _before(
    rows: "Rows", delta: Tensor, found: list[Tensor], y: Tensor, dy: Tensor, dpsum: Tensor, lse: Tensor,
    lse_log2: Tensor, sums: Tensor, *_: Any, **__: Any,
) -> None:  # fmt: skip
    """In place of `_bwd_preprocess`."""
    rows.prepare(delta, lse, dpsum, lse_log2, sums)
    found.append(sums)


def _between(before: Callable[..., None]) -> Callable[..., Any]:
    """The package's backward function with `before` in place of its own pass before the main kernel, and none after, so
    that its dq is not written: a copy that finds them under those names. The package stays as it is.
    """
    assert kernels is not None
    function: Any = kernels[1]
    names = {"_bwd_preprocess": before, "_bwd_postprocess_convert": lambda *_, **__: None}
    return FunctionType(function.__code__, function.__globals__ | names, function.__name__, function.__defaults__)


def attend(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None = None, longest: int = 0) -> Tensor:
    """Causal attention of [B, T, H, D] on [B, T, Hkv, D]; with cu_seqlens on [T, heads, D], inside each segment."""
    y: Tensor = forward(q, k, v, cu_seqlens, longest)[0]
    return y
