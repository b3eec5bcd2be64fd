"""A block as two passes written out, forward and backward: library products with one kernel between two of them.

    h = r0 x + r1 x0, n = s norm(h)              one pass                 `pgolf.kernels.residual_norm`
    [q k v] = n Wqkv^T                           product
    q, k normed, rotated, sharpened              one pass                 `pgolf.kernels.heads`
    y = attention(q, k, v)                                                `pgolf.model.attention`
    z = gate (y without its part along v)        one pass                 `pgolf.kernels.gated_output`
    h <- h + z (diag(a) Wo)^T                    product into the stream  `pgolf.train.folded`
    n2 = s norm(h)                               one pass
    f = LeakyReLU(slope)(n2 W1^T)^2              product                  `pgolf.kernels.leaky_mlp`
    h <- h + f (diag(m) W2)^T                    product into the stream

In lanes both halves read their own stream and `pgolf.kernels.lane_sum` ends the layer. The gradient of x0 goes from
layer to layer and grows in the passes that are there anyway: every block returns x0 too. Between the layers' products
nothing is kept that a pass can make again: x, n, [q k v], q and k, y, z, n2, f and a bit per hidden unit.

Twin: `Block.forward` and `pgolf.model.lanes.step`; equal but for roundings, of which there are fewer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.float8 import Eighth, product
from pgolf.kernels.gated_output import Gate, gated_backward, gated_forward
from pgolf.kernels.heads import heads_backward, heads_forward
from pgolf.kernels.lane_sum import lanes_backward, lanes_forward
from pgolf.kernels.residual_norm import MixGradients, Normed, mix_backward, norm_forward
from pgolf.model.attention import Gradient, attend_with_gradient
from pgolf.train.folded import unfold, weight_gradient
from pgolf.train.fused_call import Call, Parameters, back
from pgolf.train.fused_mlp import Fed, FeedGradients, feed_backward, feed_forward, feed_out, into


class Attended(NamedTuple):
    """What the attention half keeps for its gradient."""

    n: Tensor
    projected: Tensor
    y: Tensor
    """[N, H, D]."""
    gradient: Gradient
    """From that of y [B, T, H, D] to those of q, k and v."""
    z: Tensor
    gates: Tensor | None


def attention_forward(call: Call, normed: Normed, p: Parameters) -> Attended:
    """The half's output is z Wo'^T."""
    shape, n, eight = call.shape, normed.y, call.weights.eight
    if normed.y8 is None or eight is None:
        projected = n @ call.weights.qkv.T
    else:
        projected = product(Eighth(normed.y8, eight.norm), eight.qkv)
    rotated = heads_forward(projected, p.gain, *call.tables, shape)
    heads = *shape.split(rotated, 2), shape.split(projected, 3)[2]
    q, k, v = (part.view(-1, shape.period, *part.shape[1:]) for part in heads)
    y, gradient = attend_with_gradient(q, k, v, call.segments)
    y = y.flatten(0, 1)
    z, gates = gated_forward(y, *_inputs(call, projected, n, p))
    return Attended(n, projected, y, gradient, z.flatten(1), gates)


def _inputs(call: Call, projected: Tensor, n: Tensor, p: Parameters) -> tuple[Tensor | None, Gate | None]:
    values = call.shape.split(projected, 3)[2] if call.exclusive else None
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
    dz = (g @ call.weights.out).view(kept.y.shape)
    out, attn_scale = unfold(weight_gradient(g, kept.z), p.out, p.attn_scale)
    gated = gated_backward(dz, kept.y, *_inputs(call, kept.projected, kept.n, p), kept.gates)
    dq, dk, dv = kept.gradient(gated.y.view(-1, call.shape.period, *gated.y.shape[1:]))
    dq, dk, dv = dq.flatten(0, 1).contiguous(), dk.flatten(1, 2).contiguous(), dv.flatten(1, 2).contiguous()
    d_projected, eighth, gain = heads_backward(
        (dq, dk, dv), gated.v, kept.projected, p.gain, *call.tables, call.shape, call.factor8
    )  # fmt: skip
    return AttentionGradients(
        back(call, d_projected, eighth, "qkv"), gated.n, weight_gradient(d_projected, kept.n), out, attn_scale, gain,
        gated.weight,
    )  # fmt: skip


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
        h, squares = into(call, first.h, ctx.attended.z)
        fed = feed_forward(call, h, squares)
        out = feed_out(call, fed, h)
        ctx.call = call
        ctx.save_for_backward(x, x0, first.inverse, *fed, *parameters)
        ctx.set_materialize_grads(False)
        return out, x0.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        g, later = upstream
        if g is None:
            return None, None, later, *(None for _ in Parameters._fields)
        call, (x, x0, inverse, *kept) = ctx.call, ctx.saved_tensors
        fed, p, g = Fed(*kept[: len(Fed._fields)]), Parameters(*kept[len(Fed._fields) :]), g.contiguous()
        attended, ctx.attended = ctx.attended, None
        fed_back = feed_backward(call, fed, g, g, call.one, p)
        read = attention_backward(call, attended, fed_back.h, p)
        mixed = mix_backward(
            read.n, read.narrow, fed_back.h, call.one, x, x0, p.mix, call.scale, inverse, later, inside=True
        )  # fmt: skip
        return None, mixed.x, mixed.x0, *_gradients(call, read, fed_back, mixed)


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
        fed = feed_forward(call, lane1)
        m = fed.f @ call.weights.down.T
        ctx.call = call
        ctx.save_for_backward(lane0, lane1, x0, post, carry, first.inverse, a, m, *fed, *parameters)
        ctx.set_materialize_grads(False)
        return *lanes_forward((lane0, lane1), a, m, post, carry), x0.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        call, saved = ctx.call, ctx.saved_tensors
        lane0, lane1, x0, post, carry, inverse, a, m, *kept = saved
        fed, p = Fed(*kept[: len(Fed._fields)]), Parameters(*kept[len(Fed._fields) :])
        g0, g1 = (torch.zeros_like(a) if g is None else g.contiguous() for g in upstream[:2])
        attended, ctx.attended = ctx.attended, None
        summed = lanes_backward((g0, g1), (lane0, lane1), a, m, post)
        fed_back = feed_backward(call, fed, summed.m, g1, carry[1], p)
        read = attention_backward(call, attended, summed.a, p)
        mixed = mix_backward(
            read.n, read.narrow, g0, carry[0], lane0, x0, p.mix, call.scale, inverse, upstream[2], inside=False
        )  # fmt: skip
        return (
            None, mixed.x, fed_back.h, mixed.x0, summed.post, summed.carry, *_gradients(call, read, fed_back, mixed)
        )  # fmt: skip
