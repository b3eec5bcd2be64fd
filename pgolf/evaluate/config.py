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
    lr_floor: float = 0.0
    """Share of the rate that the cosine ends at (TTT v2 of PR 401's author: 0.1)."""
    weight_decay: float = 0.0
    """Decay of SGD, added to the gradient (TTT v2: 0.01)."""
    block_rates: bool = False
    """Block i of n learns at (i + 1) / n of the rate, all else at the whole (discriminative rates of TTT v2)."""
    sam: float = 0.0
    """Radius of sharpness-aware steps, two passes each (PR 401's author: 0.05; no verified gain); 0: ordinary ones."""

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "epochs", "hard_epochs", "rows_per_step"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "freeze_blocks", "max_train_chunks", "warmup_chunks", "weight_decay", "sam"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must not be negative")
        for name in ("momentum", "ema", "lr_floor"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 0 and less than 1")
        if self.grad_clip <= 0:
            raise InputError(f"`grad_clip` is {self.grad_clip}; it must be greater than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRAConfig:
    """Adapters for every document (PR 1530); defaults are those that PR 1855 ran with."""

    maps: tuple[Literal["q", "k", "v", "o", "mlp", "head"], ...] = ("q", "k", "v", "o", "mlp", "head")
    """Linear maps with an adapter (first version of 17 March: q, v, head)."""
    rank: int = 80
    """Inner width r (PR 1530: 96; first version: 8)."""
    alpha: float = 144.0
    """The adapter's output is multiplied by alpha / r."""
    optimizer: Literal["adamw", "normalized"] = "adamw"
    """`normalized` steps along the gradient and has the length that AdamW's first step has; no betas, less memory."""
    lr: float = 0.0001
    """Learning rate (first version: 0.01): root mean square of what a step changes, or about that with AdamW."""
    beta1: float = 0.0
    """Decay of the first moment (first version: 0.9); 0 needs no memory."""
    beta2: float = 0.99
    """Decay of the second moment (PR 1530: 0.999; first version: 0.95)."""
    eps: float = 1e-10
    """Added to the root of the second moment."""
    weight_decay: float = 0.5
    """Decoupled decay of A and B (before PR 1855: 1.0; first version: 0)."""
    warm_start: bool = True
    """Keep A from batch to batch; false: draw it again for every document."""
    carry: float = 0.0
    """All documents start from shared A and B, which move this share of the way to the mean of what a batch ended with;
    0: B starts at zero, and `warm_start` says what A does (published)."""
    chunk_tokens: int = 48
    """Targets that are scored together before one step on them (PR 1530: 32; first version: 256)."""
    documents: int = 64
    """Documents per batch."""
    growth: int | None = None
    """`ttt: cached`: chunks grow with the text before them, to 1 / growth of it; null: all are `chunk_tokens` long."""

    def __post_init__(self) -> None:
        for name in ("rank", "chunk_tokens", "documents", "growth"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.carry <= 1:
            raise InputError(f"`carry` is {self.carry}; it must lie between 0 and 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 0 and less than 1")
        if self.optimizer == "normalized" and self.beta1:
            raise InputError(f"`beta1` is {self.beta1}, but `optimizer: normalized` has no moments: set it to 0")
        if self.eps <= 0:
            raise InputError(f"`eps` is {self.eps}; it must be greater than 0")
        if not self.maps or len(set(self.maps)) < len(self.maps):
            raise InputError(f"`maps` is {list(self.maps)}; it must name at least one map, and none twice")


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasesConfig:
    """When `ttt: phased` trains the shared weights on documents that are scored (PR 1855)."""

    prefix_documents: int = 2500
    """Documents that the last of these updates learns from, P."""
    count: int = 3
    """Updates, n: update p learns from floor(P (p + 1) / n) documents."""
    ranks: int = 8
    """Processes of the published run, which all finish a batch before an update; the order is the same on fewer."""

    def __post_init__(self) -> None:
        for name in ("prefix_documents", "count", "ranks"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """A cache of the document's own states (Grave, Joulin, Usunier 2017); constants belong to a model, and come from
    training text: `pgolf sweep cache` finds them."""

    sharpness: float = 0.0
    """How fast the weight of a state falls with its distance, theta; 0: no cache."""
    gate: float = 0.36
    """How much the share of the cache rises with the weight that it found, a."""
    bias: float = -3.2
    """The share of the cache, b, as a logit, where one state is the same."""

    def __post_init__(self) -> None:
        for name in ("sharpness", "gate"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Defaults are the record lineage's sliding evaluation."""

    seq_len: int = 2048
    """Longest context in tokens, L."""
    stride: int = 64
    """New targets per window; the other L - stride tokens are context. stride = seq_len is plain evaluation. `lora` and
    `phased` have windows of their own, and this one for the unadapted comparison."""
    isolate_documents: bool = False
    """Cut windows at document starts, so that no context crosses a BOS token."""
    batch_tokens: int = 65_536
    """Tokens per forward pass; changes memory and speed, not the score beyond rounding."""
    ttt: Literal["none", "chunk", "lora", "phased", "cached"] = "none"
    """Test-time training on tokens that are already scored: `chunk` is SGD on all weights, chunk by chunk; `lora`
    adapts to each document alone; `phased` does that too, with SGD on all weights between phases; `cached` is `lora`
    with remembered keys and values, so that each token passes through the model once."""
    chunk: ChunkTTTConfig = ChunkTTTConfig()
    """Settings of `ttt: chunk`, and of the SGD of `phased`."""
    lora: LoRAConfig = LoRAConfig()
    """Settings of `ttt: lora`, `phased` and `cached`."""
    phases: PhasesConfig = PhasesConfig()
    """Settings of `ttt: phased`."""
    seconds: float | None = None
    """Budget of `lora`, `phased` and `cached`, which learn less where measured throughput does not keep it; null: no
    limit."""
    compile: bool = True
    """torch.compile for `lora`, `phased` and `cached` on CUDA; a CPU always runs eagerly."""
    temperature: float = 1.0
    """Logits are divided by it in every score. Legal where it was found on training text, as `pgolf sweep temperature`
    does; PR 401's author picked one on validation text, which leaks."""
    cache: CacheConfig = CacheConfig()
    """What followed similar states in the same document, mixed into the score but not into those that it is compared
    with; beside every `ttt` but `chunk`."""
    measure_gain: bool = True
    """With `ttt` or `cache`: score the same windows once more without, off the evaluation clock, to report
    `ttt_gain_bpb`."""
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
        if self.temperature <= 0:
            raise InputError(f"`temperature` is {self.temperature}; it must be greater than 0")
        if self.seconds is not None and self.seconds <= 0:
            raise InputError(f"`seconds` is {self.seconds}; it must be greater than 0, or null")
        if self.cache.sharpness:
            self._check_cache()
        if self.ttt in ("lora", "phased", "cached"):
            self._check_documents()
        if self.ttt in ("chunk", "phased") and self.chunk.chunk_tokens < self.seq_len:
            raise InputError(
                f"`chunk.chunk_tokens` {self.chunk.chunk_tokens} must hold at least one row of `seq_len` {self.seq_len}"
            )

    @property
    def adapts(self) -> bool:
        """Whether scores differ from those of windows alone."""
        return self.ttt != "none" or self.cache.sharpness > 0

    def _check_cache(self) -> None:
        if not self.isolate_documents:
            raise InputError("`cache` adapts to documents: set `isolate_documents: true`")
        if self.ttt == "chunk":
            raise InputError("`cache` wants whole documents, `ttt: chunk` scores parts: set `cache.sharpness` to 0")

    def _check_documents(self) -> None:
        if not self.isolate_documents:
            raise InputError(f"`ttt: {self.ttt}` adapts to documents: set `isolate_documents: true`")
        if self.lora.chunk_tokens > self.seq_len:
            raise InputError(
                f"`lora.chunk_tokens` {self.lora.chunk_tokens} must be at most the context, `seq_len` {self.seq_len}"
            )
        if self.ttt == "cached" and self.stride == self.seq_len:
            raise InputError(
                f"`ttt: cached` keeps seq_len - stride tokens of context: set `stride` below {self.seq_len}"
            )
        if self.ttt == "phased" and (self.chunk.ema is not None or self.chunk.hard_epochs is not None):
            raise InputError("`chunk.ema` and `chunk.hard_epochs` belong to `ttt: chunk`: set both to null")
