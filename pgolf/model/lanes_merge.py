"""Two lanes that never exchange anything and are merged by one learned weight (PR 1477, 1520, from layer 7 on).

    x = r0 * lane0 + r1 * x0;   lane0 <- x + a * Attn(norm(x) s);   lane1 <- lane1 + m * MLP(norm(lane1) s)
    end: w lane0 + (1 - w) lane1, w = 0.5 at first

The skip of the layer where they split joins both lanes, later ones lane 0 only; in PR 1334 those were lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.context import Context
from pgolf.model.lanes import LaneForm, Lanes
from pgolf.model.norm import rms_norm

if TYPE_CHECKING:
    from pgolf.model.blocks import Block


def parameters(config: ModelConfig) -> dict[str, Tensor]:
    """w []."""
    return {"lane_merge": torch.tensor(0.5)}


def step(block: Block, lanes: Lanes, rows: tuple[Tensor, ...], context: Context) -> Lanes:
    """Attention on lane 0, the MLP on lane 1; there are no rows."""
    x = block.mix(lanes.attention, context.x0)
    a = block.attend(x, rms_norm(x) * context.scale, context)
    m = block.feed(rms_norm(lanes.mlp) * context.scale, context)
    return Lanes(
        torch.addcmul(x, a, block.attn_scale.to(x.dtype)), torch.addcmul(lanes.mlp, m, block.mlp_scale.to(x.dtype))
    )


def skip(lanes: Lanes, entering: bool, join: Callable[[Tensor], Tensor]) -> Lanes:
    """Into both at the split, into lane 0 later."""
    return Lanes(join(lanes.attention), join(lanes.mlp) if entering else lanes.mlp)


def end(model: nn.Module, lanes: Lanes) -> Tensor:
    """The weighted sum."""
    weight: Tensor = model.lane_merge  # type: ignore[assignment]
    return torch.lerp(lanes.mlp, lanes.attention, weight.to(lanes.mlp.dtype))


FORM = LaneForm(parameters, step, skip, end)
