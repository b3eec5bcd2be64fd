"""The two-lane decoder: attention and MLP of a layer read different residual streams (PR 1530, 1855).

    A = a * Attn(norm(r0 * lane0 + r1 * x0) s)      M = m * MLP(norm(lane1) s)
    lane0' = rho_0 lane0 + P_00 A + P_10 M
    lane1' = rho_1 lane1 + P_01 A + P_11 M

P[source, destination] and rho are learned per physical layer; both lanes are updated from the old ones. They start
equal where the split is, skips go into lane 0 only, and their mean is the final state. Other forms of two lanes:
`pgolf.model.lanes_sequential`, `pgolf.model.lanes_merge`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.context import Context
from pgolf.model.norm import rms_norm

if TYPE_CHECKING:
    from pgolf.model.blocks import Block


class Lanes(NamedTuple):
    """The stream that attention reads and the one that the MLP reads, each [B, T, d]."""

    attention: Tensor
    mlp: Tensor


def split(x: Tensor) -> Lanes:
    """Both lanes start as the stream [B, T, d]."""
    return Lanes(x, x)


class LaneForm(NamedTuple):
    """A two-lane decoder as functions; parameters lie on the model, under their published names."""

    parameters: Callable[[ModelConfig], dict[str, Tensor]]
    """Initial values."""
    step: Callable[[Block, Lanes, tuple[Tensor, ...], Context], Lanes]
    """One layer; the tensors are this layer's rows of the routing parameters."""
    skip: Callable[[Lanes, bool, Callable[[Tensor], Tensor]], Lanes]
    """A skip enters the lanes; the flag says whether they have just been split, the function joins it to one."""
    end: Callable[[nn.Module, Lanes], Tensor]
    """The final state [B, T, d] from the model's parameters and the lanes."""
    split: Callable[[Tensor], Lanes] = split
    """The lanes where the decoder splits."""


def routing(config: ModelConfig) -> dict[str, Tensor]:
    """P [L, 2, 2] and rho [L, 2]; the rows of layers before the split are never used."""
    return {
        "parallel_post_lambdas": torch.ones(config.layers, 2, 2),
        "parallel_resid_lambdas": torch.full((config.layers, 2), config.lane_init),
    }


def step(block: Block, lanes: Lanes, rows: tuple[Tensor, ...], context: Context) -> Lanes:
    """Both sublayers from the old lanes; rows are P [2, 2] and rho [2]."""
    x = block.mix(lanes.attention, context.x0)
    a = block.attend(x, rms_norm(x) * context.scale, context) * block.attn_scale.to(x.dtype)
    m = block.feed(rms_norm(lanes.mlp) * context.scale, context) * block.mlp_scale.to(x.dtype)
    post, carry = (row.to(x.dtype) for row in rows)
    first = carry[0] * lanes.attention + post[0, 0] * a + post[1, 0] * m
    second = carry[1] * lanes.mlp + post[0, 1] * a + post[1, 1] * m
    return Lanes(first, second)


def skip(lanes: Lanes, entering: bool, join: Callable[[Tensor], Tensor]) -> Lanes:
    """Into lane 0 only."""
    return Lanes(join(lanes.attention), lanes.mlp)


def mean(model: nn.Module, lanes: Lanes) -> Tensor:
    """(lane0 + lane1) / 2."""
    return (lanes.attention + lanes.mlp) * 0.5


FORM = LaneForm(routing, step, skip, mean)


def lane_form(config: ModelConfig) -> LaneForm:
    """The form that `model.parallel` names."""
    if config.parallel == "lanes_sequential":
        from pgolf.model.lanes_sequential import FORM as SEQUENTIAL

        return SEQUENTIAL
    if config.parallel == "merge":
        from pgolf.model.lanes_merge import FORM as MERGE

        return MERGE
    return FORM
