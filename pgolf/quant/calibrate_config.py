"""The `calibrate` section: which tokens the Hessians see."""

from dataclasses import dataclass
from typing import Literal

from pgolf.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateConfig:
    """Defaults are PR 1394's and 1493's: 64 batches of 48 dense rows; PR 1855 takes 16."""

    batches: int = 64
    """Batches of training rows, drawn by the shuffled-sequence loader."""
    rows: int = 48
    """Rows per batch."""
    seq_len: int = 2048
    """Tokens per row, attended to densely and causally."""
    source: Literal["train", "generated"] = "train"
    """`train`: training rows, so the seconds are training time (issue 677); `generated`: text that the model writes
    (PR 1019, treated as legal after training too), one forward pass for each token."""
    temperature: float = 0.8
    """Of generated text."""
    sensitivity: int = 0
    """Further batches for the sensitivity of every output (`pgolf.quant.sensitivity`), three times as costly; labels
    are drawn from the model. 0: none."""
    seed: int = 0
    """Other rows with every seed, for the spread of a result; 0: the published order."""

    def __post_init__(self) -> None:
        for name in ("batches", "rows", "seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if self.temperature <= 0:
            raise InputError(f"`temperature` is {self.temperature}; it must be greater than 0")
        if self.sensitivity < 0:
            raise InputError(f"`sensitivity` is {self.sensitivity}; it must not be negative")
        if self.seed < 0:
            raise InputError(f"`seed` is {self.seed}; it must not be negative")
