"""The MLP half of a block written out, and how both halves reach the stream.

With `Call.epilogues` norm, activation and their gradients live in the epilogues of the products
(`pgolf.kernels.stream_products`); without, one kernel stands between two products, or Triton's products hold the
activation (`pgolf.kernels.leaky_mlp`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.activation import activation_backward, activation_forward, round_gradient
from pgolf.kernels.float8 import Eighth, product
from pgolf.kernels.leaky_mlp import backward as leaky_backward
from pgolf.kernels.leaky_mlp import hidden_units
from pgolf.kernels.residual_norm import norm_backward, norm_forward
from pgolf.kernels.row_factors import norm_factors, past_factor
from pgolf.kernels.stream_products import added, hidden, hidden_backward, into_stream, past_norm
from pgolf.train.folded import unfold, weight_gradient
from pgolf.train.fused_call import Call, Parameters, back


class Fed(NamedTuple):
    """What the half keeps for its gradient."""

    stream: Tensor
    """h [N, d] with epilogues, without its norm n."""
    inverse: Tensor
    """1 / sqrt(mean(h^2) + eps) [N]."""
    f: Tensor
    """[N, F]."""
    signs: Tensor
    """With epilogues s times `inverse`; without, a bit per hidden unit, or (float8) all of p."""


def into(call: Call, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """h + z Wo'^T, in place where h is not kept, and with epilogues the sums of its squares."""
    if call.epilogues:
        out = torch.empty_like(h)
        return out, into_stream(z, call.weights.out, out, h)["squares"]
    return h.addmm_(z, call.weights.out.T), None


def feed_forward(call: Call, h: Tensor, squares: Tensor | None = None) -> Fed:
    """f of the stream h [N, d]; the sums of its squares are taken where they are not given."""
    if call.epilogues:
        inverse, factor = norm_factors(*((h, call.scale) if squares is None else (squares, call.scale, h.size(1))))
        f = h.new_empty(len(h), len(call.weights.up))
        hidden(h, call.weights.up, f, factor=factor, slope=abs(call.slope))
        return Fed(h, inverse, f, factor)
    eight = call.weights.eight
    normed = norm_forward(h, call.scale, eight=call.factor8 is not None)
    if normed.y8 is None or eight is None:
        return Fed(normed.y, normed.inverse, *hidden_units(normed.y, call.weights.up, call.slope))
    p = product(Eighth(normed.y8, eight.norm), eight.up)
    return Fed(normed.y, normed.inverse, activation_forward(p, call.slope), p)


def feed_out(call: Call, fed: Fed, h: Tensor) -> Tensor:
    """h + f W2'^T, in place where h is not kept."""
    if not call.epilogues:
        return h.addmm_(fed.f, call.weights.down.T)
    out = torch.empty_like(h)
    added(fed.f, call.weights.down, out, h)
    return out


class FeedGradients(NamedTuple):
    """Of h [N, d] and of the parameters."""

    h: Tensor
    up: Tensor
    down: Tensor
    mlp_scale: Tensor


def feed_backward(call: Call, fed: Fed, g: Tensor, past: Tensor, carry: Tensor, p: Parameters) -> FeedGradients:
    """g [N, d] is the gradient of f W2'^T, carry [] times past [N, d] what reaches h beside the norm."""
    down, mlp_scale = unfold(weight_gradient(g, fed.f), p.down, p.mlp_scale)
    if call.epilogues:
        dp, dh = torch.empty_like(fed.f), torch.empty_like(past)
        along = hidden_backward(
            g, call.weights.down.T, dp, f=fed.f, factor=fed.signs, slope=abs(call.slope)
        )["along"]  # fmt: skip
        factor = past_factor(along, fed.inverse, dh.size(1), times=2.0)
        past_norm(dp, call.weights.up.T, dh, past, h=fed.stream, along=factor, carry=carry)
        return FeedGradients(dh, weight_gradient(dp, fed.stream), down, mlp_scale)
    if call.factor8 is None:
        dp, dp8 = leaky_backward(g, call.weights.down, fed.f, fed.signs, call.slope), None
    else:
        df = back(call, g, round_gradient(g, call.factor8), "down")
        dp, dp8 = activation_backward(df, fed.signs, call.slope, call.factor8)
    dn = back(call, dp, dp8, "up")
    dh = norm_backward(dn, past, carry, fed.stream, call.scale, fed.inverse)
    return FeedGradients(dh, weight_gradient(dp, fed.stream), down, mlp_scale)
