"""The `train` section: data order, budget, optimisers, schedule and averaging."""

from dataclasses import dataclass, field
from typing import Literal

from pgolf.errors import InputError


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must not be negative")


def _below_one(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig:
    """Muon for the weight matrices of the blocks (MuonEq-R: PR 1285)."""

    lr: float = 0.022
    """Learning rate before the schedule's multiplier."""
    momentum: float = 0.99
    """Momentum mu of the accumulating buffer."""
    momentum_start: float = 0.92
    """Momentum at step 0; it rises linearly to `momentum`."""
    momentum_warmup: int = 1500
    """Steps of that rise."""
    weight_decay: float = 0.095
    """Decoupled decay, multiplied by the scheduled learning rate."""
    row_norm: bool = True
    """Normalise the rows of the update before orthogonalisation (MuonEq-R)."""
    newton_schulz: Literal["standard", "polar_express"] = "standard"
    """Coefficients of the iteration: (3.4445, -4.775, 2.0315) each time, or five tuned tuples (PR 1787)."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""

    def __post_init__(self) -> None:
        _not_negative(self, "lr", "momentum_warmup", "weight_decay", "ns_steps")
        _below_one(self, "momentum", "momentum_start")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamConfig:
    """One AdamW group; the decay applies to all its tensors, also to gains and gates."""

    lr: float = 0.02
    """Learning rate before the schedule's multiplier."""
    weight_decay: float = 0.02
    """Decoupled decay."""

    def __post_init__(self) -> None:
        _not_negative(self, "lr", "weight_decay")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Defaults are PR 1493's; exactly one of `steps` and `seconds` sets the budget."""

    seed: int = 42
    """Seed of the initialisation; the data order is fixed by design (PR 1394)."""
    steps: int | None = None
    """Budget in optimizer steps: the result does not depend on the machine's speed."""
    seconds: float | None = 600.0
    """Budget in seconds of training wall-clock, as in the challenge."""
    reserve_seconds: float = 12.0
    """Kept back from `seconds` for calibration, which counts as training time (PR 1060, 1493)."""
    batches: Literal["rows", "packed"] = "rows"
    """`rows`: shuffled dense rows (PR 1394, 1493); `packed`: whole documents with masked attention (PR 1530)."""
    seq_len: int = 2048
    """Tokens of a dense row, and the longest piece of a document in packed rows."""
    batch_tokens: int = 786_432
    """Tokens per optimizer step."""
    micro_tokens: int = 98_304
    """Tokens per forward pass; gradients of batch_tokens / micro_tokens passes are averaged."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """Weight matrices of the blocks."""
    embed: AdamConfig = AdamConfig(lr=0.03, weight_decay=0.085)
    """Tied embedding."""
    scalar: AdamConfig = AdamConfig(lr=0.02, weight_decay=0.02)
    """Gains, gates, scales and every other small tensor."""
    beta1: float = 0.9
    """First AdamW moment decay."""
    beta2: float = 0.95
    """Second AdamW moment decay."""
    grad_clip: float = 0.3
    """Largest global gradient norm."""
    warmdown: float = 0.72
    """Final fraction of the budget in which the learning rate falls linearly (PR 1493)."""
    lr_floor: float = 0.0
    """Lowest learning-rate multiplier (MIN_LR, PR 1787: 0.1)."""
    ema: float = 0.9965
    """Decay of the weight average that becomes the model; no bias correction."""
    loop_at: float = 0.35
    """Fraction of the budget after which depth recurrence is on (PR 1493)."""
    compile: bool = True
    """torch.compile on CUDA; a CPU always runs eagerly, for it may have no compiler."""
    trace_every: int = 10
    """Steps between entries of the training trace (loss, rates, gradient norms, gates)."""
    checkpoint_seconds: float = 60.0
    """Seconds between resumable states in scratch/; 0 writes none."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InputError(
                f"`steps` is {self.steps} and `seconds` is {self.seconds}; set exactly one and make the other null"
            )
        if self.steps is not None and self.steps <= 0:
            raise InputError(f"`steps` is {self.steps}; it must be greater than 0")
        _not_negative(self, "reserve_seconds", "checkpoint_seconds")
        if self.seconds is not None and self.seconds <= self.reserve_seconds:
            raise InputError(f"`seconds` {self.seconds} must exceed `reserve_seconds` {self.reserve_seconds}")
        for name in ("seq_len", "batch_tokens", "micro_tokens", "grad_clip", "trace_every"):
            if getattr(self, name) <= 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be greater than 0")
        _below_one(self, "beta1", "beta2")
        for name in ("ema", "warmdown", "lr_floor", "loop_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must lie between 0 and 1")
        if self.batch_tokens % self.micro_tokens:
            raise InputError(
                f"`batch_tokens` {self.batch_tokens} must be a multiple of `micro_tokens` {self.micro_tokens}"
            )
        if self.batches == "rows" and self.micro_tokens % self.seq_len:
            raise InputError(f"`micro_tokens` {self.micro_tokens} must be a multiple of `seq_len` {self.seq_len}")

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step."""
        return self.batch_tokens // self.micro_tokens
