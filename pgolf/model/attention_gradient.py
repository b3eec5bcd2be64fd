"""Attention and its gradient for a caller that goes backward by itself, outside of any graph of autograd."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgolf.model import flash4, flash4_gradient
from pgolf.model.attention import Segments, attend, backend

if TYPE_CHECKING:
    from pgolf.kernels.attention_rows import Rows

Gradient = Callable[..., tuple[Tensor | list[Tensor], Tensor, Tensor]]
"""Of the output's gradient dy: dq like q; dk and dv as parts [parts, *k.shape] that are to be added up. With `rows`, of
dy and its delta: dq as `flash4_gradient.gradients_in_sums` leaves it.
"""


def gives_sums(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_with_gradient` of packed rows can be given `rows`."""
    return backend(device, dtype, head_dim) == "fa4" and flash4_gradient.has_known_sums(device, head_dim)


def attend_with_gradient(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, rows: "Rows | None" = None
) -> tuple[Tensor, Gradient]:
    """`attend` outside of any graph, and its gradient, to be called once; FlashAttention-4 gives dk and dv in parts."""
    if backend(q.device, q.dtype, q.size(-1), segments is not None) == "fa4":
        return _flash4_with_gradient(q, k, v, segments, rows)
    leaves = q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()
    with torch.enable_grad():
        y = attend(*leaves, segments)

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = torch.autograd.grad(y, leaves, dy)
        return dq, dk[None], dv[None]

    return y.detach(), gradient


def _flash4_with_gradient(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments | None, rows: "Rows | None"
) -> tuple[Tensor, Gradient]:
    cu, longest = segments or (None, 0)
    q_row, k_row, v_row = (tensor.detach() if segments is None else tensor.detach()[0] for tensor in (q, k, v))
    y, lse = flash4.forward(q_row, k_row, v_row, cu, longest)

    def gradient(dy: Tensor, delta: Tensor | None = None) -> tuple[Tensor | list[Tensor], Tensor, Tensor]:
        dq: Tensor | list[Tensor]
        given = q_row, k_row, v_row, y, lse
        if torch.cuda.is_available() and torch.cuda.get_device_capability(q.device)[0] != 9:  # not tried elsewhere
            whole = flash4.backward(dy.reshape(y.shape), *given, cu, longest)
            return whole[0].view(q.shape), whole[1].view(-1, *k.shape), whole[2].view(-1, *v.shape)
        if rows is None or delta is None or cu is None:
            dq, dk, dv = flash4_gradient.gradients_in_parts(dy.view(y.shape), *given, cu, longest)
            dq = dq.view(q.shape)
        else:
            dq, dk, dv = flash4_gradient.gradients_in_sums(dy.view(y.shape), delta, *given, cu, longest, rows)
        return dq, dk.view(-1, *k.shape), dv.view(-1, *v.shape)

    return y.view(q.shape), gradient
