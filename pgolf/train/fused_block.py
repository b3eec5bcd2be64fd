"""A block as two passes written out, forward and backward: products with one kernel between two of them, and on Hopper
with most of what these do inside (`pgolf.kernels.stream_products`).

    h = r0 x + r1 x0, n = s norm(h)              one pass                 `pgolf.kernels.residual_norm`
    [q k v] = n Wqkv^T, q, k normed, rotated     product                  `pgolf.kernels.heads_product`
    y = attention(q, k, v)                                                `pgolf.model.attention_gradient`
    z = gate (y without its part along v)        one pass                 `pgolf.kernels.gated_output`
    h <- h + z (diag(a) Wo)^T                    product into the stream  `pgolf.train.folded`
    n2 = s norm(h)                               one pass
    f = LeakyReLU(slope)(n2 W1^T)^2              product                  `pgolf.kernels.leaky_mlp`
    h <- h + f (diag(m) W2)^T                    product into the stream

In lanes both halves read their own stream and `pgolf.kernels.lane_sum` ends the layer, `pgolf.kernels.lane_end` the
last one. The gradient of x0 goes from layer to layer and grows in the passes that are there anyway: every block returns
x0 too, and x for a skip to read.
Between the layers' products nothing is kept that a pass can make again: x, n, [q k v] as attention reads it, y, z, n2,
f, a bit per hidden unit; on Hopper h in the place of n and n2, and no bits.

Twin: `Block.forward` and `pgolf.model.lanes.step`; equal but for roundings, of which there are fewer.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.kernels.column_sums import column_sums
from pgolf.kernels.gated_output import Gate, gated_backward, gated_forward
from pgolf.kernels.heads import heads_backward
from pgolf.kernels.heads_accumulated import heads_backward_of_sums
from pgolf.kernels.heads_product import fits, heads_product
from pgolf.kernels.lane_end import end_backward, end_forward
from pgolf.kernels.lane_sum import lanes_backward, lanes_forward
from pgolf.kernels.residual_norm import MixGradients, Normed, mix_backward, norm_forward
from pgolf.kernels.row_factors import past_factor
from pgolf.kernels.stream_products import (
    past_mix,
    past_mix_and_branch,
    past_mix_and_skip,
    past_mix_of_first,
    past_mix_of_lane,
    past_mix_of_lane_and_skip,
)
from pgolf.model.attention_gradient import Gradient, attend_with_gradient
from pgolf.train.fused_call import Call, Parameters
from pgolf.train.fused_mlp import Fed, Stream, feed_backward, feed_forward, feed_out, into


class Attended(NamedTuple):
    """What the attention half keeps for its gradient."""

    stream: Tensor
    """n [N, d]; with epilogues h, without its norm."""
    factor: Tensor | None
    """From h to n [N], with epilogues."""
    projected: Tensor
    """[q' k' v] as attention reads it."""
    inverse: Tensor
    """1 / rms of queries and keys before their norm."""
    y: Tensor
    """[N, H, D]."""
    gradient: Gradient
    """From that of y [B, T, H, D], and delta where there are `Call.rows`, to those of q', k' and v."""
    z: Tensor
    logits: Tensor | None


def attention_forward(call: Call, normed: Normed, p: Parameters) -> Attended:
    """The half's output is z Wo'^T."""
    shape, stream, factor, weight, eight = call.shape, normed.y, normed.factor, call.weights.qkv, call.weights.eight
    x, dtype = stream, stream.dtype
    if (
        eight is not None and factor is not None and normed.h8 is not None
        and fits(normed.h8, shape, call.tables[0].size(1))
    ):  # fmt: skip
        x, weight, factor = normed.h8, eight.qkv.values, factor * eight.qkv.scale
    projected, inverse = heads_product(x, weight, p.gain, *call.tables, shape, factor, dtype)
    q, k, v = shape.split(projected.view(-1, shape.period, projected.size(1)))
    y, gradient = attend_with_gradient(q, k, v, call.segments, call.rows)
    y = y.flatten(0, 1)
    z, logits = gated_forward(y, *_inputs(call, projected, stream, normed.factor, p))
    return Attended(stream, normed.factor, projected, inverse, y, gradient, z.flatten(1), logits)


def _inputs(
    call: Call, projected: Tensor, stream: Tensor, factor: Tensor | None, p: Parameters
) -> tuple[Tensor | None, Gate | None]:
    values = call.shape.split(projected)[2] if call.exclusive else None
    return values, None if p.gate is None else Gate(stream, factor, p.gate, call.gate_factor)


class AttentionGradients(NamedTuple):
    """Of what reads the stream, [N, (H + 2 Hkv) D and the gate's], with epilogues times `factor`."""

    read: Tensor
    common: Tensor | None
    """With epilogues: parts of n . dn [N, parts]."""


def attention_backward(call: Call, kept: Attended, g: Tensor, p: Parameters) -> AttentionGradients:
    """g [N, d] is the gradient of the half's output; those of the weights and of the gain go to `call.sums`."""
    dz = (g @ call.weights.out).view(kept.y.shape)
    call.sums.product("out", g, kept.z)
    values, gate = _inputs(call, kept.projected, kept.stream, kept.factor, p)
    read, width, keys = g.new_empty(len(g), len(call.weights.read)), kept.projected.size(1), call.shape.kv_heads
    common = None
    if call.epilogues:
        of_gate = 0 if gate is None else call.shape.heads if values is None else keys
        common = g.new_empty(len(g), of_gate + keys, dtype=torch.float32)
    delta = None if call.rows is None else g.new_empty(kept.y.shape[:2], dtype=torch.float32)
    dy, dv2 = gated_backward(dz, kept.y, values, gate, kept.logits, read[:, width:], common, delta)
    gain = _to_projection(call, kept, dy, delta, dv2, p, read, None if common is None else common[:, -keys:])
    call.sums.add("gain", column_sums(gain[None])[0])
    call.sums.product("read", read, kept.stream)
    return AttentionGradients(read, common)


def _to_projection(
    call: Call, kept: Attended, dy: Tensor, delta: Tensor | None, dv2: Tensor | None, p: Parameters, read: Tensor,
    common: Tensor | None,
) -> Tensor:  # fmt: skip
    """From attention's output to what reads the stream: writes `read`, `common`, returns parts of that of the gain."""
    dy = dy.view(-1, call.shape.period, *dy.shape[1:])
    dq, dk, dv = kept.gradient(dy) if delta is None else kept.gradient(dy, delta)
    dk, dv = dk.flatten(1, 2).contiguous(), dv.flatten(1, 2).contiguous()
    rest = dv2, kept.projected, kept.inverse, p.gain, *call.tables, call.shape, read, kept.factor, common
    if isinstance(dq, Tensor):
        return heads_backward((dq.flatten(0, 1).contiguous(), dk, dv), *rest)
    assert call.rows is not None
    return heads_backward_of_sums((dq, dk, dv), call.rows, *rest)


def head_backward(
    call: Call, a: AttentionGradients, past: Tensor, carry: Tensor, x: Tensor, x0: Tensor, p: Parameters,
    inverse: Tensor, later: Tensor | None, inside: bool, branch: Tensor | None = None, s: Tensor | None = None,
) -> MixGradients:  # fmt: skip
    """Of the block's input x and of x0; carry [] times past [N, d] reaches the mixed stream, or (not inside) x.
    `branch` is what another reader of x sends back (`pgolf.train.fused_stack`); where a skip, of s [N, d], made x, the
    gradient is that of the stream before it (`pgolf.train.skips`).
    """
    if a.common is None:
        dn = a.read @ call.weights.read
        mixed = mix_backward(dn, past, carry, x, x0, p.mix, call.scale, inverse, later, inside)
        return mixed if branch is None else mixed._replace(x=mixed.x.add_(branch))
    dx, dx0 = torch.empty_like(x), torch.empty_like(x0)
    given: dict[str, Any] = {
        "x": x, "x0": x0, "later": 0.0 if later is None else later, "first": p.mix[0],
        "second": p.mix[1], "along": past_factor(a.common, inverse, x.size(1)), "dx0": dx0,
    }  # fmt: skip
    product = past_mix if inside else past_mix_of_lane
    if not inside:
        given["carry"] = carry
    if call.join is not None:
        assert branch is None, "nobody else reads the stream before a skip"
        given |= {"s": s, "share": call.join.share()}
        product = past_mix_and_skip if inside else past_mix_of_lane_and_skip
    elif branch is not None:
        assert call.branch is not None
        given |= {"branch": branch.contiguous(), "ratio": call.branch.ratio}
        product = past_mix_and_branch
    found = product(a.read, call.weights.read.T, dx, past, **given)
    sums = column_sums(found["columns"])  # of dh x, dh x0, d s and d x: the order of the product's `column_sums`
    if call.join is not None:
        call.join.add(p.mix[0] * sums[0] if inside else sums[3], sums[2])
    return MixGradients(dx, dx0, sums[:2])


def first_backward(
    call: Call, a: AttentionGradients, past: Tensor, x0: Tensor, p: Parameters, inverse: Tensor, later: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`head_backward` where x is x0: its gradient, and that of the mix."""
    if a.common is None:
        dn = a.read @ call.weights.read
        mixed = mix_backward(dn, past, call.one, x0, x0, p.mix, call.scale, inverse, later, True)
        return mixed.x0.add_(mixed.x), mixed.mix
    dx0, along = torch.empty_like(x0), past_factor(a.common, inverse, x0.size(1))
    found = past_mix_of_first(
        a.read, call.weights.read.T, dx0, past, x0=x0, later=0.0 if later is None else later,
        both=p.mix[0] + p.mix[1], along=along,
    )  # fmt: skip
    return dx0, column_sums(found["columns"]).repeat(2, 1)


class SequentialBlock(torch.autograd.Function):
    """x, x0 [N, d] and the token of the parameters (`pgolf.train.visits`) to the block's output, x0 and x. In the place
    of x None is x0 itself, which gets one gradient. Where a skip comes first: s [N, d] of it, if that is not x, and the
    token of all skips (`pgolf.train.skips`).
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, call: Call, x: Tensor | None, x0: Tensor, token: Tensor, s: Tensor | None, joins: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.first, x = x is None, x0 if x is None else x
        p, skip = call.parameters, None if call.join is None else call.join.first(s)
        first = norm_forward(x, call.scale, x0, p.mix, call.weights.eight is not None, not call.epilogues, skip)
        ctx.attended = attention_forward(call, first, p)
        stream = into(call, first.h, ctx.attended.z)
        fed, f8 = feed_forward(call, stream)
        out = feed_out(call, fed.f, f8, stream.h)
        ctx.call = call
        ctx.save_for_backward(first.x, x if s is None else s, x0, first.inverse, *fed)
        ctx.set_materialize_grads(False)
        return out, x0.detach(), x.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        g, later, branch = upstream
        if g is None:
            if branch is not None and ctx.call.branch is not None:
                branch = (branch * ctx.call.branch.ratio).to(branch.dtype)
            return None, branch, later, None, None, None
        call, (x, s, x0, inverse, *fed) = ctx.call, ctx.saved_tensors
        p, g = call.parameters, g.contiguous()
        attended, ctx.attended = ctx.attended, None
        dh = feed_backward(call, Fed(*fed), g, g, call.one)
        read = attention_backward(call, attended, dh, p)
        if ctx.first:
            assert branch is None, "it is not returned for others to read"
            dx0, of_mix = first_backward(call, read, dh, x0, p, inverse, later)
            call.sums.add("mix", of_mix)
            return None, None, dx0, None, None, None
        mixed = head_backward(call, read, dh, call.one, x, x0, p, inverse, later, True, branch, s)
        call.sums.add("mix", mixed.mix)
        return None, mixed.x, mixed.x0, None, mixed.x if ctx.needs_input_grad[4] else None, None


class LanesBlock(torch.autograd.Function):
    """Both lanes and x0 [N, d], P [2, 2] and rho [2], and the token of the parameters to both lanes and x0. Where lanes
    have just been split lane 1 is None: the stream is read once, and gets one gradient. Where a skip comes first, into
    lane 0, s and token as `SequentialBlock` takes them. The last layer returns the final state, nothing and x0.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, call: Call, x: Tensor, lane1: Tensor | None, x0: Tensor, post: Tensor, carry: Tensor, token: Tensor,
        s: Tensor | None, joins: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        p, skip = call.parameters, None if call.join is None else call.join.first(s)
        first = norm_forward(x, call.scale, x0, p.mix, call.weights.eight is not None, not call.epilogues, skip)
        ctx.attended = attention_forward(call, first, p)
        a = ctx.attended.z @ call.weights.out.T
        ctx.call, ctx.split = call, lane1 is None
        lanes = first.x, x if lane1 is None else lane1
        fed, f8 = feed_forward(call, Stream(lanes[1]))
        m = feed_out(call, fed.f, f8, None)
        out = (end_forward if call.ends else lanes_forward)(lanes, a, m, post, carry)
        kept = out if call.ends else (None, None)
        ctx.save_for_backward(*lanes, x if s is None else s, x0, post, carry, first.inverse, a, m, *kept, *fed)
        ctx.set_materialize_grads(False)
        return out[0], None if call.ends else out[1], x0.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        call, saved = ctx.call, ctx.saved_tensors
        lane0, lane1, s, x0, post, carry, inverse, a, m, y, of_mean, *fed = saved
        p = call.parameters
        attended, ctx.attended = ctx.attended, None
        of_out = upstream[:1] * 2 if call.ends else upstream[:2]
        g0, g1 = (torch.zeros_like(a) if g is None else g.contiguous() for g in of_out)
        if call.ends:
            g0, summed = end_backward(g0, y, of_mean, (lane0, lane1), a, m, post)
            g1 = g0
        else:
            summed = lanes_backward((g0, g1), (lane0, lane1), a, m, post)
        read = attention_backward(call, attended, summed.a, p)
        mixed = head_backward(call, read, g0, carry[0], lane0, x0, p, inverse, upstream[2], inside=False, s=s)
        call.sums.add("mix", mixed.mix)
        dh = feed_backward(call, Fed(*fed), summed.m, g1, carry[1], mixed.x if ctx.split else None)
        of_lanes = (dh, None) if ctx.split else (mixed.x, dh)
        of_s = mixed.x if ctx.needs_input_grad[7] else None
        return None, *of_lanes, mixed.x0, summed.post, summed.carry, None, of_s, None
