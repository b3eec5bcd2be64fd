"""The MLP half of a block written out, and how both halves reach the stream.

With `Call.epilogues` norm, activation and their gradients live in the epilogues of the products
(`pgolf.kernels.stream_products`); without, one kernel stands between two products, or Triton's products hold the
activation (`pgolf.kernels.leaky_mlp`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.kernels import float8
from pgolf.kernels.leaky_mlp import backward as leaky_backward
from pgolf.kernels.leaky_mlp import hidden_units
from pgolf.kernels.residual_norm import norm_backward, norm_forward
from pgolf.kernels.rounded_rows import round_rows
from pgolf.kernels.row_factors import norm_factors, past_factor
from pgolf.kernels.stream_products import (
    added,
    added8,
    hidden,
    hidden8,
    hidden_backward,
    hidden_backward8,
    into_stream,
    into_stream8,
    past_norm,
    past_norm8,
    past_norm8_and_branch,
    past_norm_and_branch,
    scaled8,
)  # fmt: skip
from pgolf.kernels.transposed import transposed, weight_gradient8
from pgolf.train.folded import Eight
from pgolf.train.fused_call import Call


class Stream(NamedTuple):
    """The stream between the halves."""

    h: Tensor
    """[N, d]."""
    squares: Tensor | None = None
    """With epilogues: parts of the sums of the squares of its rows [N, parts]."""
    h8: Tensor | None = None
    """In float8."""


class Fed(NamedTuple):
    """What the half keeps for its gradient."""

    stream: Tensor
    """Its norm n [N, d]; with epilogues h itself."""
    inverse: Tensor
    """1 / sqrt(mean(h^2) + eps) [N]."""
    f: Tensor
    """[N, F]."""
    signs: Tensor
    """A bit per hidden unit; with epilogues, s times `inverse`."""


def into(call: Call, h: Tensor, z: Tensor) -> Stream:
    """h + z Wo'^T, in place where h is not kept."""
    if not call.epilogues:
        return Stream(h.addmm_(z, call.weights.out.T))
    out = torch.empty_like(h)
    if call.weights.eight is None:
        return Stream(out, into_stream(z, call.weights.out, out, h)["squares"])
    h8 = torch.empty_like(h, dtype=float8.KIND)
    return Stream(out, into_stream8(z, call.weights.out, out, h, h8=h8)["squares"], h8)


def feed_forward(call: Call, stream: Stream) -> tuple[Fed, Tensor | None]:
    """f of the stream, also in float8; what is not there of the stream is made."""
    h, squares, h8 = stream
    if not call.epilogues:
        normed = norm_forward(h, call.scale)
        return Fed(normed.y, normed.inverse, *hidden_units(normed.y, call.weights.up, call.slope)), None
    f, slope, eight = h.new_empty(len(h), len(call.weights.up)), abs(call.slope), call.weights.eight
    if squares is None:
        h8 = None if eight is None else torch.empty_like(h, dtype=float8.KIND)
        inverse, factor = norm_factors(h, call.scale, h8=h8)
    else:
        inverse, factor = norm_factors(squares, call.scale, h.size(1))
    if eight is None or h8 is None:
        hidden(h, call.weights.up, f, factor=factor, slope=slope)
        return Fed(h, inverse, f, factor), None
    f8 = torch.empty_like(f, dtype=float8.KIND)
    hidden8(h8, eight.up.values, f, factor=factor, slope=slope, scale=eight.up.scale, f8=f8)
    return Fed(h, inverse, f, factor), f8


def feed_out(call: Call, f: Tensor, f8: Tensor | None, h: Tensor | None) -> Tensor:
    """f W2'^T, or h + f W2'^T, in place where h is not kept."""
    down, eight = call.weights.down, call.weights.eight
    if not call.epilogues or (h is None and f8 is None):
        return f @ down.T if h is None else h.addmm_(f, down.T)
    out = f.new_empty(len(f), len(down))
    if f8 is None or eight is None:
        added(f, down, out, h)
    elif h is None:
        scaled8(f8, eight.down.values, out, scale=eight.down.scale)
    else:
        added8(f8, eight.down.values, out, h, scale=eight.down.scale)
    return out


def feed_backward(
    call: Call, fed: Fed, g: Tensor, past: Tensor, carry: Tensor, branch: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The gradient of h [N, d]. g [N, d] is that of f W2'^T, carry [] times past [N, d] and `branch` [N, d] what
    reaches h beside the norm; those of the weights go to `call.sums`.
    """
    call.sums.product("down", g, fed.f)
    if call.weights.eight is not None and call.epilogues:
        return _feed_backward8(call, call.weights.eight, fed, g, past, carry, branch)
    if call.epilogues:
        dh, dp = _feed_backward(call, fed, g, past, carry, branch)
    else:
        dp = leaky_backward(g, call.weights.down, fed.f, fed.signs, call.slope)
        dh = norm_backward(dp @ call.weights.up, past, carry, fed.stream, call.scale, fed.inverse)
        dh = dh if branch is None else dh.add_(branch)
    call.sums.product("up", dp, fed.stream)
    return dh


def _feed_backward(
    call: Call, fed: Fed, g: Tensor, past: Tensor, carry: Tensor, branch: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dh [N, d] and dp' [N, F], with epilogues."""
    dp, dh, weights = torch.empty_like(fed.f), torch.empty_like(past), call.weights
    along = hidden_backward(g, weights.down.T, dp, f=fed.f, factor=fed.signs, slope=abs(call.slope))["along"]
    along = past_factor(along, fed.inverse, dh.size(1), times=2.0)
    given = {"h": fed.stream, "along": along, "carry": carry}
    if branch is None:
        past_norm(dp, weights.up.T, dh, past, **given)
    else:
        past_norm_and_branch(dp, weights.up.T, dh, past, **given, branch=branch)
    return dh, dp


def _feed_backward8(
    call: Call, eight: Eight, fed: Fed, g: Tensor, past: Tensor, carry: Tensor, branch: Tensor | None
) -> Tensor:
    """dh, with dp in float8 only: in rows for dp W1, across them for dp^T h, where the factors of rows go into h."""
    dp, dh = torch.empty_like(fed.f, dtype=float8.KIND), torch.empty_like(past)
    up, down, across = eight.up_across, eight.down_across, dp.new_empty(dp.size(1), len(dp))
    g8, size, factor = round_rows(g, fed.signs, down.scale)
    along = hidden_backward8(g8, down.values, dp, f=fed.f, slope=abs(call.slope), across=across.T)["along"]
    along = past_factor(along, fed.inverse, dh.size(1), 2.0, size)
    given = {"h": fed.stream, "along": along, "carry": carry, "factor": factor, "scale": up.scale}
    if branch is None:
        past_norm8(dp, up.values, dh, past, **given)
    else:
        past_norm8_and_branch(dp, up.values, dh, past, **given, branch=branch)
    call.sums.add("up", weight_gradient8(float8.Eighth(across, call.one), transposed(fed.stream, factor)))
    return dh
