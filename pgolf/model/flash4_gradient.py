"""The backward pass of FlashAttention-4 in the forms that the block's own passes can read (`pgolf.train.fused_block`).

Query heads that share key heads, and what the package does before and after its main kernel, cost as much as half of
that kernel: here every call has one query head for a key head, and the passes around it can be ours.
"""

import contextlib
import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgolf.model import flash4

if TYPE_CHECKING:
    from pgolf.kernels.attention_rows import Rows

KNOWN = "4.0.0b36"
"""The version whose main backward kernel `gradients_in_sums` can call by itself."""


def gradients_in_parts(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, cu_seqlens: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """dq like q; dk and dv as H / Hkv parts [parts, *k.shape] that are to be added up: `flash4.backward`, and faster.

    Query heads that share key heads make the kernel add up dk and dv in float32 memory, which is zeroed before and
    converted after. Here a call takes one query head of every key head, as strided views, and writes its own part.
    """
    assert flash4.kernels is not None
    parts = q.size(-2) // k.size(-2)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(parts, *k.shape), v.new_empty(parts, *v.shape)
    lengths, scale = flash4.lengths(cu_seqlens, longest), q.size(-1) ** -0.5
    for part in range(parts):
        queries, outputs, upstream, found = (tensor[..., part::parts, :] for tensor in (q, y, dy, dq))
        flash4.kernels[1](
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
            dq=queries, dk=dk[part], dv=dv[part], **flash4.lengths(cu_seqlens, longest),
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
    assert flash4.kernels is not None
    function: Any = flash4.kernels[1]
    names = {"_bwd_preprocess": before, "_bwd_postprocess_convert": lambda *_, **__: None}
    return FunctionType(function.__code__, function.__globals__ | names, function.__name__, function.__defaults__)
