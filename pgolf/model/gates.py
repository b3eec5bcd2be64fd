"""Gates on the attention output y [B, T, H, D], after XSA and before the output projection.

    y_h <- g_h y_h, one g per token and head; n [B, T, d] is the input of the projections (normed, LN-scaled)

    per_head      sigmoid(W n + b)            W [H, d] = 0, b [H] = attn_gate_bias      PR 549, 635; PR 1520
    dense         sigmoid(W n)                W [H, d] ~ N(0, attn_gate_std^2)          PR 1736, 2071
    sparse        sigmoid(k W n[:window])     W [H, window] = 0, k = attn_gate_scale    PR 1787, 1855
    window        2 sigmoid(W n[:window])     W = 0: starts at 1; or of the raw query   PR 1667
    headwise      sigmoid(last H outputs of a wider query projection)                   PR 2005, 2071's text
    elementwise   sigmoid(last H D outputs), a gate per head and dimension              PR 2071's study

PR 1520 gave W of its per_head gate to Muon, because no control name matched it: `train.muon.also: [gates]`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.config import ModelConfig


class Gated(Protocol):
    """What the forms below read of an attention module; the parameters have their published names."""

    attn_gate_w: Tensor
    attn_gate_b: Tensor
    gate_scale: float


Form = Callable[[Gated, Tensor, Tensor, Tensor], Tensor]
"""(attention, y [B, T, H, D], n [B, T, d], output of the query projection [B, T, ...]) to gated y."""


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """weight [H, window] times the leading channels of x [B, T, ...]."""
    return F.linear(x[..., : weight.size(1)], weight.to(x.dtype))


def per_head(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """Of the whole input, with a bias."""
    logits = linear(n, attention.attn_gate_w) + attention.attn_gate_b.to(n.dtype)
    return y * torch.sigmoid(logits).unsqueeze(-1)


def narrow(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """dense and sparse: of as many channels as the weight has columns."""
    gate = torch.sigmoid(attention.gate_scale * linear(n, attention.attn_gate_w))
    return y * gate.unsqueeze(-1)


def window(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """Twice the sigmoid, of the input."""
    return y * (2 * torch.sigmoid(linear(n, attention.attn_gate_w))).unsqueeze(-1)


def window_query(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """Twice the sigmoid, of the raw query."""
    return y * (2 * torch.sigmoid(linear(query, attention.attn_gate_w))).unsqueeze(-1)


def headwise(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """Of the last H outputs of the query projection."""
    return y * torch.sigmoid(query[..., -y.size(2) :]).unsqueeze(-1)


def elementwise(attention: Gated, y: Tensor, n: Tensor, query: Tensor) -> Tensor:
    """Of the last H D outputs of the query projection."""
    return y * torch.sigmoid(query[..., query.size(-1) // 2 :]).view_as(y)


FORMS: dict[str, Form] = {
    "per_head": per_head, "dense": narrow, "sparse": narrow, "window": window, "headwise": headwise,
    "elementwise": elementwise,
}  # fmt: skip


def install_gate(attention: nn.Module, config: ModelConfig) -> Form:
    """Give the attention module the gate's parameters; returns its form."""
    kind, inputs = config.attn_gate, config.dim if config.attn_gate in ("per_head", "dense") else config.gate_window
    if kind in ("per_head", "dense", "sparse", "window"):
        weight = torch.zeros(config.heads, inputs)
        attention.attn_gate_w = nn.Parameter(weight.normal_(std=config.attn_gate_std) if kind == "dense" else weight)
    if kind == "per_head":
        attention.attn_gate_b = nn.Parameter(torch.full((config.heads,), config.attn_gate_bias))
    attention.gate_scale = config.attn_gate_scale if kind == "sparse" else 1.0  # type: ignore[assignment]
    return window_query if config.attn_gate_query else FORMS[kind]


def query_outputs(config: ModelConfig) -> int:
    """Outputs of the query projection: with those that gate."""
    extra = {"headwise": config.heads, "elementwise": config.dim}
    return config.dim + extra.get(config.attn_gate, 0)
