"""The `evaluate` section: how validation tokens are cut into windows."""

from dataclasses import dataclass

from pgolf.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Defaults are the record lineage's sliding evaluation."""

    seq_len: int = 2048
    """Longest context in tokens, L."""
    stride: int = 64
    """New targets per window; the other L - stride tokens are context. stride = seq_len is plain evaluation."""
    isolate_documents: bool = False
    """Cut windows at document starts, so that no context crosses a BOS token."""
    batch_tokens: int = 65_536
    """Tokens per forward pass; changes memory and speed, not the score beyond rounding."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.seq_len:
            raise InputError(f"`stride` {self.stride} must lie between 1 and `seq_len` {self.seq_len}")
        if self.batch_tokens < self.seq_len:
            raise InputError(
                f"`batch_tokens` {self.batch_tokens} must hold at least one row of `seq_len` {self.seq_len}"
            )
