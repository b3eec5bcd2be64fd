"""What the passes of a block written out are told, and what they share (`pgolf.train.fused_block`)."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from pgolf.kernels.attention_rows import Rows
from pgolf.kernels.heads import Shape
from pgolf.model.attention import Segments
from pgolf.train.folded import Weights

if TYPE_CHECKING:
    from pgolf.train.skips import Branch, Join
    from pgolf.train.visits import Sums


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
    parameters: Parameters
    sums: "Sums"
    """Where their gradients go."""
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
    rows: Rows | None = None
    """Where the gradient of queries comes as attention's kernel adds it up."""
    branch: "Branch | None" = None
    """With epilogues, of a block outside lanes."""
    join: "Join | None" = None
    """With epilogues, the skip that makes its input, in lanes that of lane 0."""
    ends: bool = False
    """In lanes, whether the norm of their mean follows, and is made here."""
