"""What a layer can read besides the stream that it changes."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from pgolf.model.attention import Segments
from pgolf.model.rotary import Tables

if TYPE_CHECKING:
    from pgolf.model.visit import Visit


class Context(NamedTuple):
    """One forward pass as one physical layer sees it. B rows, T tokens, d width."""

    x0: Tensor
    """The normalised embedding [B, T, d]."""
    scale: Tensor
    """s of this layer, []: a tensor, so that one compiled graph serves all layers."""
    tables: Tables
    """cos and sin of the rotary embedding."""
    segments: Segments | None
    """Boundaries of documents in a packed row."""
    values: Tensor | None = None
    """What is added to the values of this layer [B, T, Hkv D]."""
    first: Tensor | None = None
    """What the values of this layer are mixed with: see `pgolf.model.value_residual`."""
    visit: "Visit | None" = None
    """What an evaluation that adapts adds to this virtual layer: see `pgolf.model.visit`."""
