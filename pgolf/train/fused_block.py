"""A block as two passes written out, forward and backward: library products with one kernel between two of them.

    h = r0 x + r1 x0, n = s norm(h)              one pass                 `pgolf.kernels.residual_norm`
    [q k v] = n Wqkv^T, q, k normed, rotated     product                  `pgolf.kernels.heads_product`
    y = attention(q, k, v)                                                `pgolf.model.attention`
    z = gate (y without its part along v)        one pass                 `pgolf.kernels.gated_output`
    h <- h + z (diag(a) Wo)^T                    product into the stream  `pgolf.train.folded`
    n2 = s norm(h)                               one pass
    f = LeakyReLU(slope)(n2 W1^T)^2              product                  `pgolf.kernels.leaky_mlp`
    h <- h + f (diag(m) W2)^T                    product into the stream

In lanes both halves read their own stream and `pgolf.kernels.lane_sum` ends the layer. The gradient of x0 goes from
layer to layer and grows in the passes that are there anyway: every block returns x0 too. Between the layers' products
nothing is kept that a pass can make again: x, n, [q k v] as attention reads it, y, z, n2, f, a bit per hidden unit.

Twin: `Block.forward` and `pgolf.model.lanes.step`; equal but for roundings, of which there are fewer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.activation import activation_backward, activation_forward, round_gradient
from pgolf.kernels.float8 import Eighth, product
from pgolf.kernels.gated_output import Gate, gated_backward, gated_forward
from pgolf.kernels.heads import Shape, heads_backward, heads_forward
from pgolf.kernels.heads_product import heads_product
from pgolf.kernels.lane_sum import lanes_backward, lanes_forward
from pgolf.kernels.leaky_mlp import backward as leaky_backward
from pgolf.kernels.leaky_mlp import hidden_units
from pgolf.kernels.residual_norm import MixGradients, Normed, mix_backward, norm_backward, norm_forward
from pgolf.model.attention import Segments, attend
from pgolf.train.folded import Weights, unfold, weight_gradient


class Parameters(NamedTuple):
    """What gradients flow to, float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    up: Tensor
    down: Tensor
    gain: Tensor
    gate: Tensor | None
    attn_scale: Tensor
    mlp_scale: Tensor
    mix: Tensor


class Call(NamedTuple):
    """What one pass through a block needs besides."""

    weights: Weights
    scale: Tensor
    """s []."""
    one: Tensor
    """1.0 []."""
    tables: tuple[Tensor, Tensor]
    segments: Segments | None
    shape: Shape
    slope: float
    exclusive: bool
    gate_factor: float
    factor8: float | None = None
    """Factor on gradients in float8; None: products are in the type of the activations."""


class Attended(NamedTuple):
    """What the attention half keeps for its gradient."""

    n: Tensor
    projected: Tensor
    """As attention reads it."""
    inverse: Tensor
    """1 / rms of queries and keys before their norm."""
    z: Tensor
    heads: tuple[Tensor, Tensor, Tensor]
    """q, k, v [B, T, heads, D], leaves of the graph of y."""
    y: Tensor
    """[B, T, H, D]."""


def attention_forward(call: Call, normed: Normed, p: Parameters) -> Attended:
    """The half's output is z Wo'^T."""
    shape, n, eight = call.shape, normed.y, call.weights.eight
    if normed.y8 is None or eight is None:
        projected, inverse = heads_product(n, call.weights.qkv, p.gain, *call.tables, shape)
    else:
        projected = product(Eighth(normed.y8, eight.norm), eight.qkv)
        inverse = heads_forward(projected, p.gain, *call.tables, shape)
    rows = projected.view(-1, shape.period, projected.size(1))
    q, k, v = (part.detach().requires_grad_() for part in shape.split(rows))
    with torch.enable_grad():
        y = attend(q, k, v, call.segments)
    z = gated_forward(y.detach().flatten(0, 1), *_inputs(call, v, n, p))
    return Attended(n, projected, inverse, z.flatten(1), (q, k, v), y)


def _inputs(call: Call, v: Tensor, n: Tensor, p: Parameters) -> tuple[Tensor | None, Gate | None]:
    values = v.detach().flatten(0, 1) if call.exclusive else None
    return values, None if p.gate is None else Gate(n, p.gate, call.gate_factor)


class AttentionGradients(NamedTuple):
    """Of n [N, d], but for what the gate adds to its first columns; and of the parameters."""

    n: Tensor
    narrow: Tensor | None
    qkv: Tensor
    out: Tensor
    attn_scale: Tensor
    gain: Tensor
    gate: Tensor | None


def attention_backward(call: Call, kept: Attended, g: Tensor, p: Parameters) -> AttentionGradients:
    """g [N, d] is the gradient of the half's output."""
    y, (q, k, v) = kept.y, kept.heads
    dz = (g @ call.weights.out).view(len(g), call.shape.heads, call.shape.head_dim)
    out, attn_scale = unfold(weight_gradient(g, kept.z), p.out, p.attn_scale)
    gated = gated_backward(dz, y.detach().flatten(0, 1), *_inputs(call, v, kept.n, p))
    found = torch.autograd.grad(y, (q, k, v), gated.y.view(y.shape))
    dq, dk, dv = (part.flatten(0, 1).contiguous() for part in found)
    d_projected, eighth, gain = heads_backward(
        (dq, dk, dv), gated.v, kept.projected, kept.inverse, p.gain, *call.tables, call.shape, call.factor8
    )  # fmt: skip
    return AttentionGradients(
        back(call, d_projected, eighth, "qkv"), gated.n, weight_gradient(d_projected, kept.n), out, attn_scale, gain,
        gated.weight,
    )  # fmt: skip


def back(call: Call, g: Tensor, g8: Tensor | None, name: str) -> Tensor:
    """The gradient of what a folded matrix multiplies, from that of its product: in float8 where g8 is there."""
    if g8 is None or call.weights.eight is None:
        matrix: Tensor = getattr(call.weights, name)
        return g @ matrix
    return product(Eighth(g8, call.weights.eight.gradient), getattr(call.weights.eight, f"{name}_back"))


def feed_forward(call: Call, normed: Normed) -> tuple[Tensor, Tensor]:
    """f [N, F], and what its gradient needs besides."""
    eight = call.weights.eight
    if normed.y8 is None or eight is None:
        return hidden_units(normed.y, call.weights.up, call.slope)
    p = product(Eighth(normed.y8, eight.norm), eight.up)
    return activation_forward(p, call.slope), p


class FeedGradients(NamedTuple):
    """Of n [N, d] and of the parameters."""

    n: Tensor
    up: Tensor
    down: Tensor
    mlp_scale: Tensor


def feed_backward(call: Call, n: Tensor, f: Tensor, signs: Tensor, g: Tensor, p: Parameters) -> FeedGradients:
    """g [N, d] is the gradient of the MLP's output f W2'^T."""
    down, mlp_scale = unfold(weight_gradient(g, f), p.down, p.mlp_scale)
    if call.factor8 is None:
        dp, dp8 = leaky_backward(g, call.weights.down, f, signs, call.slope), None
    else:
        df = back(call, g, round_gradient(g, call.factor8), "down")
        dp, dp8 = activation_backward(df, signs, call.slope, call.factor8)
    return FeedGradients(back(call, dp, dp8, "up"), weight_gradient(dp, n), down, mlp_scale)


def _gradients(call: Call, a: AttentionGradients, m: FeedGradients, mixed: MixGradients) -> Parameters:
    width = call.shape.kv_heads * call.shape.head_dim
    query, key, value = torch.split(a.qkv, [len(a.qkv) - 2 * width, width, width])
    return Parameters(
        query, key, value, a.out, m.up, m.down, a.gain, a.gate, a.attn_scale, m.mlp_scale, mixed.mix
    )  # fmt: skip


class SequentialBlock(torch.autograd.Function):
    """x, x0 [N, d] to the block's output and x0; the parameters follow."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, x0: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: D102
        p = Parameters(*parameters)  # type: ignore[arg-type]
        first = norm_forward(x, call.scale, x0, p.mix, call.factor8 is not None)
        ctx.attended = attention_forward(call, first, p)
        h = first.h.addmm_(ctx.attended.z, call.weights.out.T)
        second = norm_forward(h, call.scale, eight=call.factor8 is not None)
        f, signs = feed_forward(call, second)
        h.addmm_(f, call.weights.down.T)
        ctx.call = call
        ctx.save_for_backward(x, x0, first.inverse, second.y, second.inverse, f, signs, *parameters)
        ctx.set_materialize_grads(False)
        return h, x0.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        g, later = upstream
        if g is None:
            return None, None, later, *(None for _ in Parameters._fields)
        call, (x, x0, inverse, n2, inverse2, f, signs, *parameters) = ctx.call, ctx.saved_tensors
        attended, ctx.attended, p, g = ctx.attended, None, Parameters(*parameters), g.contiguous()
        fed = feed_backward(call, n2, f, signs, g, p)
        dh = norm_backward(fed.n, g, call.one, n2, call.scale, inverse2)
        read = attention_backward(call, attended, dh, p)
        mixed = mix_backward(
            read.n, read.narrow, dh, call.one, x, x0, p.mix, call.scale, inverse, later, inside=True
        )  # fmt: skip
        return None, mixed.x, mixed.x0, *_gradients(call, read, fed, mixed)


class LanesBlock(torch.autograd.Function):
    """Both lanes and x0 [N, d], P [2, 2] and rho [2] to both lanes and x0; the parameters follow."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, call: Call, lane0: Tensor, lane1: Tensor, x0: Tensor, post: Tensor, carry: Tensor,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        p = Parameters(*parameters)  # type: ignore[arg-type]
        first = norm_forward(lane0, call.scale, x0, p.mix, call.factor8 is not None)
        ctx.attended = attention_forward(call, first, p)
        a = torch.mm(ctx.attended.z, call.weights.out.T, out=first.h)
        second = norm_forward(lane1, call.scale, eight=call.factor8 is not None)
        f, signs = feed_forward(call, second)
        m = f @ call.weights.down.T
        ctx.call = call
        ctx.save_for_backward(
            lane0, lane1, x0, post, carry, first.inverse, a, second.y, second.inverse, f, signs, m, *parameters
        )  # fmt: skip
        ctx.set_materialize_grads(False)
        return *lanes_forward((lane0, lane1), a, m, post, carry), x0.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        call, saved = ctx.call, ctx.saved_tensors
        lane0, lane1, x0, post, carry, inverse, a, n2, inverse2, f, signs, m, *parameters = saved
        g0, g1 = (torch.zeros_like(a) if g is None else g.contiguous() for g in upstream[:2])
        attended, ctx.attended, p = ctx.attended, None, Parameters(*parameters)
        summed = lanes_backward((g0, g1), (lane0, lane1), a, m, post)
        fed = feed_backward(call, n2, f, signs, summed.m, p)
        d_lane1 = norm_backward(fed.n, g1, carry[1], n2, call.scale, inverse2)
        read = attention_backward(call, attended, summed.a, p)
        mixed = mix_backward(
            read.n, read.narrow, g0, carry[0], lane0, x0, p.mix, call.scale, inverse, upstream[2], inside=False
        )  # fmt: skip
        return (
            None, mixed.x, d_lane1, mixed.x0, summed.post, summed.carry, *_gradients(call, read, fed, mixed)
        )  # fmt: skip
