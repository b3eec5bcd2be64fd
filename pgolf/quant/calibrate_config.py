"""The `calibrate` section: which training tokens the Hessians see."""

from dataclasses import dataclass

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

    def __post_init__(self) -> None:
        for name in ("batches", "rows", "seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
