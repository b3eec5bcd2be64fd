"""The `evaluate` section: how validation tokens are cut into windows, and what the model may learn from scored ones."""

from dataclasses import dataclass
from typing import Literal

from pgolf.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkTTTConfig:
    """Score-first chunk adaptation (PR 461, 549); defaults are PR 1413's and 1493's."""

    chunk_tokens: int = 32_768
    """Targets per chunk, K: scored together, then trained on (PR 461)."""
    lr: float = 0.005
    """Learning rate of the first chunk (PR 1413; PR 549: 0.002); a cosine takes it to 0 at the last."""
    momentum: float = 0.9
    """Momentum of SGD, carried from chunk to chunk (PR 461)."""
    epochs: int = 3
    """Passes over a scored chunk (PR 549)."""
    hard_epochs: int | None = None
    """Passes over a chunk whose scored loss is above the mean of all targets scored so far (wish of PR 1520); null: as
    `epochs`."""
    rows_per_step: int = 32
    """Sequences of `seq_len` per update; a chunk of 32,768 holds 16 of 2,048, hence one update per epoch."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    freeze_blocks: int = 0
    """First blocks that stay as they are (PR 401: 2; PR 549 tried 2 and kept 0)."""
    freeze_embedding: bool = False
    """Leave the embeddings as they are (PR 401: true)."""
    ema: float | None = None
    """Score with an average of the weights of this decay, updated once per chunk (PR 401: 0.995); null: no average."""
    max_train_chunks: int | None = None
    """Train on the first chunks only, the cosine over that number ("short TTT", PR 401: 50); null: all but the last."""
    warmup_chunks: int = 0
    """Chunks over which the learning rate rises linearly to the cosine (option of PR 401)."""

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "epochs", "hard_epochs", "rows_per_step"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "freeze_blocks", "max_train_chunks", "warmup_chunks"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must not be negative")
        for name in ("momentum", "ema"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 0 and less than 1")
        if self.grad_clip <= 0:
            raise InputError(f"`grad_clip` is {self.grad_clip}; it must be greater than 0")


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
    ttt: Literal["none", "chunk"] = "none"
    """Test-time training on tokens that are already scored: `chunk` is SGD on all weights, chunk by chunk."""
    chunk: ChunkTTTConfig = ChunkTTTConfig()
    """Settings of `ttt: chunk`."""
    measure_gain: bool = True
    """With `ttt`: score the same windows once more unadapted, off the evaluation clock, to report `ttt_gain_bpb`."""
    subset_targets: int | None = None
    """Report the plain scores on the first targets alone as well, under names that say so; null: do not. Published
    plain evaluations score whole batches only: 524,288 targets of the benchmark corpus."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.seq_len:
            raise InputError(f"`stride` {self.stride} must lie between 1 and `seq_len` {self.seq_len}")
        if self.subset_targets is not None and self.subset_targets < 1:
            raise InputError(f"`subset_targets` is {self.subset_targets}; it must be at least 1, or null")
        if self.batch_tokens < self.seq_len:
            raise InputError(
                f"`batch_tokens` {self.batch_tokens} must hold at least one row of `seq_len` {self.seq_len}"
            )
        if self.ttt == "chunk" and self.chunk.chunk_tokens < self.seq_len:
            raise InputError(
                f"`chunk.chunk_tokens` {self.chunk.chunk_tokens} must hold at least one row of `seq_len` {self.seq_len}"
            )
