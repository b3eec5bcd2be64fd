"""What the passes of a block written out are told, and what they share (`pgolf.train.fused_block`)."""

from typing import NamedTuple

from torch import Tensor

from pgolf.kernels.float8 import Eighth, product
from pgolf.kernels.heads import Shape
from pgolf.model.attention import Segments
from pgolf.train.folded import Weights


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
    epilogues: bool = False
    """Whether products hold what is around them (`pgolf.kernels.epilogue`)."""
    factor8: float | None = None
    """Factor on gradients in float8; None: products are in the type of the activations."""


def back(call: Call, g: Tensor, g8: Tensor | None, name: str) -> Tensor:
    """The gradient of what a folded matrix multiplies, from that of its product: in float8 where g8 is there."""
    if g8 is None or call.weights.eight is None:
        matrix: Tensor = getattr(call.weights, name)
        return g @ matrix
    return product(Eighth(g8, call.weights.eight.gradient), getattr(call.weights.eight, f"{name}_back"))
