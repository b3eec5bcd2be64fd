"""Two lanes with learned routing, attention first (PR 1204, from layer 7 on).

    A = a * Attn(norm(r0 * lane0 + r1 * x0) s);   lane_k <- rho_a lane_k + P_ak A
    M = m * MLP (norm(r0 * lane1 + r1 * x0) s);   lane_k <- rho_m lane_k + P_mk M

Differences from `pgolf.model.lanes`: the MLP reads the lane that attention has updated, and mixes x0 into it; rho is
that of a sublayer and scales both lanes (sqrt(1.1) at first); a skip joins both lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from pgolf.model.context import Context
from pgolf.model.lanes import LaneForm, Lanes, mean, routing
from pgolf.model.norm import rms_norm

if TYPE_CHECKING:
    from pgolf.model.blocks import Block


def step(block: Block, lanes: Lanes, rows: tuple[Tensor, ...], context: Context) -> Lanes:
    """rows are P [2, 2], source by lane, and rho [2], by source."""
    post, carry = (row.to(lanes.mlp.dtype) for row in rows)
    x = block.mix(lanes.attention, context.x0)
    a = block.attend(x, rms_norm(x) * context.scale, context) * block.attn_scale.to(x.dtype)
    first, second = (carry[0] * lane + post[0, k] * a for k, lane in enumerate(lanes))
    n = rms_norm(block.mix(second, context.x0)) * context.scale
    m = block.feed(n, context) * block.mlp_scale.to(x.dtype)
    return Lanes(carry[1] * first + post[1, 0] * m, carry[1] * second + post[1, 1] * m)


def skip(lanes: Lanes, entering: bool, join: Callable[[Tensor], Tensor]) -> Lanes:
    """Into both lanes, with the same gate."""
    return Lanes(join(lanes.attention), join(lanes.mlp))


FORM = LaneForm(routing, step, skip, mean)
