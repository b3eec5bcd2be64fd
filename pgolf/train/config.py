"""The `train` section: data order, budget, optimisers, schedule, averaging and what may come after them."""

from dataclasses import dataclass, field
from typing import Literal

from pgolf.errors import InputError


def _not_negative(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 0:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must not be negative")


def _positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must be greater than 0")


def _below_one(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must be at least 0 and less than 1")


def _fraction(config: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must lie between 0 and 1")


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
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of gradient and momentum inside Muon; the stacks with parameter banks keep both in bfloat16 (PR 399 on)."""
    weight_decay: float = 0.095
    """Decoupled decay, multiplied by the scheduled learning rate."""
    huber: float | None = None
    """c of Huber decay (PR 1807: 3): beyond c / sqrt(fan-in) the pull is constant; null: proportional everywhere."""
    taper_from: float = 1.0
    """Progress from which the decay itself falls linearly (PR 1729: 0.7); 1: never."""
    taper_to: float = 1.0
    """Factor on the decay at the end of that fall (PR 1729: 0.5)."""
    row_norm: bool = True
    """Normalise the rows of the update before orthogonalisation (MuonEq-R)."""
    mousse: bool = False
    """Divide the update by running root mean squares of its rows and columns first (PR 401's author, default off)."""
    newton_schulz: Literal["standard", "polar_express"] = "standard"
    """Coefficients of the iteration: (3.4445, -4.775, 2.0315) each time, or five tuned tuples (PR 1787)."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    post_row_norm: bool = False
    """Normalise the rows once more after orthogonalisation: NorMuon in the form of PR 1520."""
    also: tuple[Literal["gates", "projections"], ...] = ()
    """Other matrices for Muon instead of AdamW: attention gates (PR 1520), projections of hashed n-grams and value
    embeddings (PR 401)."""

    def __post_init__(self) -> None:
        _not_negative(self, "lr", "momentum_warmup", "weight_decay", "ns_steps")
        _below_one(self, "momentum", "momentum_start")
        _fraction(self, "taper_from", "taper_to")
        if self.huber is not None:
            _positive(self, "huber")


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
class LateConfig:
    """Other learning rates for late layers: 5.10 of the lineage, without a published gain.

    Split rates of PR 1204: layer 5, muon 1.2 (.025 and .030). decoder_lr_mult of PR 401's author: the first layer of
    the decoder, muon 2, scalar 2.
    """

    layer: int | None = None
    """First layer that they hold for; null: none."""
    muon: float = 1.0
    """Factor on the learning rate of its matrices."""
    scalar: float = 1.0
    """Factor on the learning rate of its gains, gates and scales."""

    def __post_init__(self) -> None:
        _not_negative(self, "muon", "scalar")
        if self.layer is not None:
            _not_negative(self, "layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Short rows and small batches at first (PR 401's author); both off by default, no isolated result."""

    seq_ramp: float = 0.0
    """Fraction of the budget with rows of seq_len / 8, / 4, / 2, a third each (published: 0.25); 0: none."""
    batch_tokens: int | None = None
    """Tokens of the first step; the batch rises linearly to `train.batch_tokens` (published: 262144); null: none."""
    batch_steps: int = 1000
    """Steps of that rise."""

    def __post_init__(self) -> None:
        _fraction(self, "seq_ramp")
        _positive(self, "batch_steps")
        if self.batch_tokens is not None:
            _positive(self, "batch_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """When `train.average` of swa, tight_swa and lawa takes a snapshot."""

    every: int = 50
    """Steps between snapshots (lawa, PR 549: 100)."""
    below: float = 0.2
    """swa and tight_swa: only while the learning-rate multiplier is below this."""
    last: int = 10
    """lawa: how many of the latest snapshots are averaged."""

    def __post_init__(self) -> None:
        _positive(self, "every", "below", "last")


@dataclass(frozen=True, kw_only=True, slots=True)
class QatConfig:
    """Late quantization-aware training: the matrices of the blocks pass through a grid, gradients go straight through.

    Do not combine with full GPTQ: +0.16 BPB in PR 635's earlier program.
    """

    below: float = 0.0
    """On while the learning-rate multiplier is below this (PR 401: 0.15, PR 315: 0.1); 0: off."""
    last: float = 0.0
    """On in this last fraction of the budget (PR 635: 0.15); 0: off."""
    bits: int = 6
    """Width of the codes."""
    least_max: float = 1.0
    """A row's grid spans at least this: scale = max(max |w|, least_max) / 31, as published; 0: its maximum."""
    symmetric: bool = False
    """Codes from -31 (PR 635) instead of -32 (PR 401) to 31."""

    def __post_init__(self) -> None:
        _fraction(self, "below", "last")
        _not_negative(self, "least_max")
        if not 2 <= self.bits <= 8:
            raise InputError(f"`bits` is {self.bits}; it must lie between 2 and 8")

    @property
    def enabled(self) -> bool:
        """Whether it is on at any time."""
        return self.below > 0 or self.last > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishConfig:
    """Passes after the last scheduled step (PR 401's author, no gain reported). Their time is training time: raise
    `reserve_seconds` by it.
    """

    replay_batches: int = 0
    """Replay burst over this many last micro-batches (published: 100); 0: none."""
    replay_epochs: int = 2
    """How often they are replayed."""
    replay_lr: float = 0.1
    """Learning-rate multiplier of the burst."""
    distill_steps: int = 0
    """Self-distillation from the average, in steps of one fresh micro-batch (published: 50); 0: none."""
    distill_lr: float = 0.05
    """Its learning-rate multiplier."""
    distill_weight: float = 0.7
    """Weight alpha of tau^2 KL(teacher, student); the rest is cross-entropy."""
    distill_temperature: float = 2.0
    """Temperature tau of the formula in `pgolf.train.finishing`."""

    def __post_init__(self) -> None:
        _not_negative(self, "replay_batches", "replay_lr", "distill_steps", "distill_lr")
        _positive(self, "replay_epochs", "distill_temperature")
        _fraction(self, "distill_weight")

    @property
    def enabled(self) -> bool:
        """Whether there is any."""
        return self.replay_batches > 0 or self.distill_steps > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptConfig:
    """A checkpoint to take instead of training one; `pgolf adopt` sets both."""

    file: str | None = None
    """Path of the checkpoint; null: train."""
    sha256: str | None = None
    """What its content must be."""

    def __post_init__(self) -> None:
        if (self.file is None) != (self.sha256 is None):
            raise InputError("`adopt` needs both `file` and `sha256`, or neither: run `pgolf adopt FILE`")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Defaults are PR 1493's; exactly one of `steps` and `seconds` sets the budget."""

    adopt: AdoptConfig = AdoptConfig()
    """Weights from elsewhere."""
    seed: int = 42
    """Seed of the initialisation; the data order is fixed by design (PR 1394)."""
    steps: int | None = None
    """Budget in optimizer steps: the result does not depend on the machine's speed."""
    seconds: float | None = 600.0
    """Budget in seconds of training wall-clock, as in the challenge."""
    reserve_seconds: float = 12.0
    """Kept back from `seconds` for calibration, which counts as training time (PR 1060, 1493)."""
    batches: Literal["rows", "packed", "sequential", "coprime"] = "rows"
    """`rows`: shuffled dense rows (PR 1394, 1493); `packed`: whole documents with masked attention (PR 1530);
    `sequential`: dense rows in the order of the shards (PR 401, 549, 635); `coprime`: dense rows, every shard walked
    with a stride coprime to its length (PR 726, 1060)."""
    ranks: int = 1
    """Data order of this many ranks: micro-batch i of a step is what rank i mod `ranks` would read (8: the challenge's
    machine, followed on fewer GPUs)."""
    prefetch: int = 2
    """Micro-batches read ahead by a thread into pinned memory, on CUDA (PR 1530; PR 1520: 8); 0: none."""
    seq_len: int = 2048
    """Tokens of a dense row, and the longest piece of a document in packed rows."""
    batch_tokens: int = 786_432
    """Tokens per optimizer step."""
    micro_tokens: int = 98_304
    """Tokens per forward pass; gradients of batch_tokens / micro_tokens passes are averaged."""
    curriculum: CurriculumConfig = CurriculumConfig()
    """Short rows and small batches at first."""
    token_fraction: float = 1.0
    """Train on this fraction of a micro-batch's tokens, those with the largest loss (selective LM loss; PR 2071's
    study: worse)."""
    muon: MuonConfig = field(default_factory=MuonConfig)
    """Weight matrices of the blocks."""
    embed: AdamConfig = AdamConfig(lr=0.03, weight_decay=0.085)
    """Tied embedding."""
    embed_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the embedding while it trains, of its gradient and its moments (bfloat16 in PR 1530 to 1855)."""
    scalar: AdamConfig = AdamConfig(lr=0.02, weight_decay=0.02)
    """Gains, gates, scales and every other small tensor."""
    late: LateConfig = LateConfig()
    """Other learning rates for late layers."""
    beta1: float = 0.9
    """First AdamW moment decay."""
    beta2: float = 0.95
    """Second AdamW moment decay (PR 1855: 0.99)."""
    grad_clip: float = 0.3
    """Largest global gradient norm."""
    clip: Literal["global", "local"] = "global"
    """`global`: the averaged gradient is clipped (PR 401, 1493); `local`: that of every rank and micro-batch by itself,
    before averaging (stacks with parameter banks, PR 549 to 1855)."""
    schedule: Literal["linear", "iterations", "d2z", "sqrt", "cosine"] = "linear"
    """Shape of the warm-down: see `pgolf.train.schedule`."""
    warmdown: float = 0.72
    """linear, sqrt, cosine: final fraction of the budget in which the learning rate falls (PR 1493)."""
    warmdown_steps: int = 3500
    """iterations: the same in steps, at the step time measured so far (PR 414, 549, 635)."""
    lr_floor: float = 0.0
    """Lowest learning-rate multiplier of the warm-down (MIN_LR, PR 1787: 0.1)."""
    lr_warmup: float = 0.0
    """First fraction of the budget in which the learning rate rises from 0 (PR 2071's study: worse)."""
    lr_warmup_steps: int = 0
    """The same in steps (200 with d2z)."""
    average: Literal["ema", "swa", "tight_swa", "lawa", "live"] = "ema"
    """Which weights become the model: see `pgolf.train.averaging`."""
    ema: float = 0.9965
    """Decay of the exponential average; no bias correction."""
    ema_candidates: tuple[float, ...] = ()
    """Decays of further averages of the same run, kept beside the model."""
    choose_batches: int = 0
    """The average with the lowest loss on this many further micro-batches of training data becomes the model; 0: the
    one that `average` names."""
    snapshots: SnapshotConfig = SnapshotConfig()
    """When swa, tight_swa and lawa take a snapshot."""
    qat: QatConfig = QatConfig()
    """Late quantization-aware training."""
    finish: FinishConfig = FinishConfig()
    """Passes after the last scheduled step."""
    loop_at: float = 0.35
    """Fraction of the budget after which depth recurrence is on (PR 1493)."""
    loop_cost: float = 1.0
    """With a budget in steps: seconds of a step with recurrence over those of one without. Progress then follows the
    clock of the machine that is emulated (PR 1855: 1.463), not the count of steps."""
    loop_further_at: tuple[float, ...] = ()
    """Progressive recurrence: with any, `loop_at` adds one pass and each of these fractions one more (PR 1412: loop_at
    .5 and [.65]); empty: all passes at once."""
    compile: bool = True
    """torch.compile on CUDA; a CPU always runs eagerly, for it may have no compiler."""
    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    """Mode of torch.compile (PR 1520: max-autotune-no-cudagraphs)."""
    kernels: Literal["plain", "triton"] = "plain"
    """`triton`: hand-written kernels for the embedding, the loss, the MLP, skips, norms and between the products of a
    block while training, on CUDA (PR 1530, 1787); a CPU goes without. On Hopper with quack-kernels other processes
    compile some of them at the start."""
    graphs: bool = False
    """Micro-batches as CUDA graphs: no gaps between kernels, but they keep the memory of a pass and one more copy of
    the gradients, and a kind of micro-batch that the warm-up has not met takes that of its first run beside it; a CPU
    goes without."""
    matmul: Literal["bfloat16", "fp8"] = "bfloat16"
    """`fp8`: with `kernels: triton`, queries, keys, values, up, down, the gradients that go back through down and up
    and that of up itself as products of 8-bit floats, on Hopper with quack-kernels (see `pgolf.kernels.float8`); the
    other gradients stay in bfloat16."""
    trace_every: int = 10
    """Steps between entries of the training trace (loss, rate, gradient norms; gates at every fourth entry)."""
    checkpoint_seconds: float = 60.0
    """Seconds between resumable states in scratch/; 0 writes none."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise InputError(
                f"`steps` is {self.steps} and `seconds` is {self.seconds}; set exactly one and make the other null"
            )
        if self.steps is not None:
            _positive(self, "steps")
        if self.matmul == "fp8" and self.kernels != "triton":
            raise InputError("`matmul: fp8` is part of the kernels of a block: set `kernels: triton` too")
        _not_negative(
            self, "reserve_seconds", "checkpoint_seconds", "prefetch", "warmdown_steps", "lr_warmup_steps",
            "choose_batches",
        )  # fmt: skip
        if self.seconds is not None and self.seconds <= self.reserve_seconds:
            raise InputError(f"`seconds` {self.seconds} must exceed `reserve_seconds` {self.reserve_seconds}")
        _positive(
            self, "seq_len", "batch_tokens", "micro_tokens", "ranks", "grad_clip", "token_fraction", "trace_every"
        )
        _below_one(self, "beta1", "beta2")
        _fraction(self, "ema", "warmdown", "lr_floor", "lr_warmup", "loop_at", "token_fraction")
        for name in ("ema_candidates", "loop_further_at"):
            for value in getattr(self, name):
                if not 0 <= value <= 1:
                    raise InputError(f"`{name}` holds {value}; each must lie between 0 and 1")
        if self.loop_cost < 1:
            raise InputError(f"`loop_cost` is {self.loop_cost}; it must be at least 1")
        if any(later < self.loop_at for later in self.loop_further_at):
            raise InputError(f"`loop_further_at` {list(self.loop_further_at)} must not begin before `loop_at`")
        self._check_batches()

    def _check_batches(self) -> None:
        if self.batch_tokens % self.micro_tokens:
            raise InputError(
                f"`batch_tokens` {self.batch_tokens} must be a multiple of `micro_tokens` {self.micro_tokens}"
            )
        if self.batches != "packed" and self.micro_tokens % self.seq_len:
            raise InputError(f"`micro_tokens` {self.micro_tokens} must be a multiple of `seq_len` {self.seq_len}")
        if self.micro_batches % self.ranks:
            raise InputError(
                f"`ranks` is {self.ranks}; the {self.micro_batches} micro-batches of a step cannot be dealt to them: "
                "lower `micro_tokens`, or take fewer ranks"
            )
        first = self.curriculum.batch_tokens
        if first is not None and first > self.batch_tokens:
            raise InputError(f"`curriculum.batch_tokens` {first} exceeds `batch_tokens` {self.batch_tokens}: lower it")
        if self.curriculum.seq_ramp and (self.batches == "packed" or self.seq_len % 8):
            raise InputError(
                f"`curriculum.seq_ramp` cuts dense rows into 8, 4 and 2 pieces; `batches` is {self.batches!r} with "
                f"`seq_len` {self.seq_len}: set it to 0, or use dense rows whose length is a multiple of 8"
            )

    @property
    def micro_batches(self) -> int:
        """Forward passes per optimizer step, at the full batch size."""
        return self.batch_tokens // self.micro_tokens
