"""The `model` section: every shape and constant of the architecture. Formulas stand in the modules that build it."""

from dataclasses import dataclass
from typing import Literal

from pgolf.errors import InputError

MOST = {"layers": 256, "dim": 16_384, "loop_runs": 64, "stack_runs": 64}
MOST_HIDDEN = MOST_ROWS = 2**20
"""Far beyond 16 MB; a hostile artifact must not make its reader build more."""


def _positive(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) <= 0:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must be greater than 0")


def _at_most(config: object, most: dict[str, int]) -> None:
    for name, limit in most.items():
        if getattr(config, name) > limit:
            raise InputError(f"`{name}` is {getattr(config, name)}; it must be at most {limit}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HashConfig:
    """A hashed n-gram embedding: `pgolf.model.hash_embedding`."""

    rows: int = 0
    """Rows of the table; 0: none (bigram: 2048 in PR 401, 1536 in 549 and 635; trigram: 4096 in an early 635)."""
    dim: int = 128
    """Width of the table, projected to `model.dim`."""
    scale: float = 0.05
    """Initial value of the learned factor (trigram: 0.03)."""
    gain: float = 1.0
    """Gain of the orthogonal projection (PR 549, 635: 1; PR 401: 1 / sqrt(2 layers))."""

    def __post_init__(self) -> None:
        if self.rows == 1 or self.rows < 0:
            raise InputError(f"`rows` is {self.rows}; it must be 0 (none) or at least 2")
        _positive(self, "dim")
        _at_most(self, {"rows": MOST_ROWS, "dim": MOST["dim"]})


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueEmbedConfig:
    """A second token embedding, added to the values of the last layers: `pgolf.model.value_embedding`."""

    last: int = 0
    """How many last layers add it; 0: none (PR 401, 549: 2)."""
    dim: int = 128
    """Width of the table, projected to the values' width (VE128)."""
    scale: float = 0.1
    """Initial value of the shared learned factor; that of each layer starts at 1."""
    gain: float = 1.0
    """Gain of the orthogonal projection (PR 549: 1; PR 401: 1 / sqrt(2 layers))."""

    def __post_init__(self) -> None:
        if self.last < 0:
            raise InputError(f"`last` is {self.last}; it must not be negative")
        _positive(self, "dim")
        _at_most(self, {"dim": MOST["dim"]})


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiTokenConfig:
    """Heads that predict further tokens while training, never shipped: `pgolf.model.multi_token`."""

    heads: int = 0
    """Further tokens that are predicted; 0: none (PR 549: off; two cost 0.032 BPB)."""
    weight: float = 0.2
    """Weight of their mean loss."""

    def __post_init__(self) -> None:
        if self.heads < 0:
            raise InputError(f"`heads` is {self.heads}; it must not be negative")
        _at_most(self, {"heads": 64})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of the record lineage, by default PR 1493; the vocabulary comes from the tokenizer."""

    layers: int = 11
    """Physical layers L."""
    dim: int = 512
    """Width d of the residual stream."""
    heads: int = 8
    """Query heads H; the head dimension is dim / heads."""
    kv_heads: int = 4
    """Key and value heads; consecutive query heads share one (grouped-query attention)."""
    mlp_mult: float = 4.0
    """Hidden width of the MLP as a multiple of dim (PR 1218: 4; before: 3); the gated activations take two thirds."""
    activation: Literal["leaky_relu2", "star_relu", "swiglu", "star_swiglu"] = "leaky_relu2"
    """Of the MLP; all but the first are experiments of PR 401's author."""
    leaky_slope: float = 0.5
    """Slope for negative inputs inside LeakyReLU(slope)^2; 0 is ReLU^2 (PR 493, 549)."""
    mlp_rank: float = 1.0
    """Up-projection through this share of dim; 1: full (structured FFN, PR 2071's study: 0.5, 0.75)."""
    mlp_blocks: int = 1
    """Diagonal blocks of the down-projection; 1: full (PR 2071's study: 4, 8)."""
    norm_pct: float = 1.0
    """Training drops the MLP output of tokens beyond this quantile of the hidden norm; 1: none (PR 1520: 0.99)."""
    norm: Literal["pre", "peri", "hybrid"] = "pre"
    """`peri`: also on the output of each sublayer; `hybrid`: on values and after the MLP (PR 2071's study: worse)."""
    ln_scale: bool = True
    """Multiply the normalised input of attention and MLP by 1/sqrt(i + 1), i the physical layer (PR 315)."""
    rope_dims: int = 16
    """Leading dimensions of each head that rotate (partial RoPE, PR 315)."""
    rope_base: float = 10000.0
    """RoPE base; the exponent's denominator is rope_dims."""
    rope_scaling: Literal["none", "ntk", "yarn"] = "none"
    """`ntk`: a larger base; `yarn`: by frequency, with a temperature (PR 1530 on: said, never on)."""
    rope_factor: float = 1.0
    """Context over `rope_length` (PR 401, 549, 635: 2048 / 1024, in training too)."""
    rope_length: int = 1024
    """Context that the unscaled frequencies are meant for; only `yarn` reads it."""
    qk_gain: float = 5.25
    """Initial gain of the queries after QK-norm and RoPE, learned per head (PR 1125, 1493)."""
    attention: Literal["softmax", "differential"] = "softmax"
    """`differential`: the difference of two softmax maps (PR 2071's study: worse, slower)."""
    xsa_layers: int = 11
    """Exclusive self-attention on this many last layers (PR 265: 3; PR 1019: all)."""
    attn_gate: Literal["none", "per_head", "dense", "sparse", "window", "headwise", "elementwise"] = "none"
    """Gate on the attention output: see the table in `pgolf.model.gates`."""
    attn_gate_scale: float = 1.0
    """sparse: factor on the gate's logit (PR 1787: 1; PR 1855: 0.5)."""
    attn_gate_bias: float = 4.0
    """per_head: initial bias (PR 549, 635: 4; PR 1520: 2.94)."""
    attn_gate_std: float = 0.01
    """dense: standard deviation of the initial weights (PR 2071: 0.01; PR 1736: 0.005)."""
    attn_gate_query: bool = False
    """window: read the queries as projected instead of the block's input (option of PR 1667)."""
    mlp_gate: bool = False
    """Gate on the MLP output, in the form of `attn_gate: window` (option of PR 1667)."""
    token_gate: bool = False
    """Gate per token on what a whole block changes (DTG of PR 549, off there)."""
    gate_window: int = 12
    """Leading channels that sparse, window, MLP and smear gates read (PR 1970: 32 better on one seed)."""
    smear: Literal["none", "window", "vector", "raw_vector"] = "none"
    """Mix the previous token's embedding into each token. `window`: gate from `gate_window` channels (PR 1667, 1855);
    `vector`: gate per channel, after the norm (PR 401, 549, 635); `raw_vector`: before it (PR 65)."""
    smear_init: float = 0.0
    """Initial logit of the vector gates (PR 401, 549, 635: 0; PR 65: -3 here, where the gate weighs the past)."""
    smear_mask: bool = True
    """No smear into the first token of a document (PR 1851; required by the organisers; absent before)."""
    bigram: HashConfig = HashConfig()
    """Embedding of hashed token pairs."""
    trigram: HashConfig = HashConfig(scale=0.03)
    """The same of triples."""
    value_embed: ValueEmbedConfig = ValueEmbedConfig()
    """Token embedding added to the values of the last layers."""
    value_residual: Literal["none", "learned", "fixed", "gated"] = "none"
    """Share of the first layer in the values of the later ones: see `pgolf.model.value_residual`."""
    value_residual_alpha: float = 0.5
    """fixed: share of the first layer's values (PR 2071's study)."""
    parallel: Literal["none", "gptj", "lanes", "lanes_sequential", "merge"] = "gptj"
    """What runs from `parallel_from` on. `gptj`: attention and MLP of a layer read the same input (PR 1412). Two
    residual streams: `lanes`, learned routing (PR 1530, 1855); `lanes_sequential` (PR 1204); `merge`, one learned
    weight at the end (PR 1477, 1520)."""
    parallel_from: int | None = 7
    """First physical layer of the parallel form; null: none."""
    lane_init: float = 1.1
    """Initial factor that carries a lane past a layer (PR 1530), or past a sublayer (PR 1204: sqrt(1.1) = 1.0488)."""
    skips: Literal["gated", "plain"] = "gated"
    """How skips join the decoder: `gated` (PR 1204, 1218), `plain` (baseline to PR 635)."""
    loop_start: int = 3
    """First physical layer of the repeated segment (depth recurrence, PR 1285, 1493)."""
    loop_end: int = 5
    """Last physical layer of the repeated segment, included."""
    loop_runs: int = 3
    """How often the segment runs once recurrence is on; 1 switches recurrence off for good."""
    loop_pos: Literal["none", "orthogonal", "normal"] = "none"
    """A learned vector before each run of the segment, or of the stack; the name says how it starts (Frugendorff,
    PR 401's author; its SHARE_START 4, SHARE_LOOPS 3 is loop_start 4, loop_end 4, loop_runs 3, train.loop_at 0)."""
    stack_runs: int = 1
    """How often the whole stack runs (whole-stack form of the same)."""
    softcap: float = 30.0
    """Logits become softcap * tanh(logits / softcap) (PR 1880: 15)."""
    multi_token: MultiTokenConfig = MultiTokenConfig()
    """Heads that predict further tokens while training."""
    embed_std: float = 0.005
    """Standard deviation of the tied embedding at initialisation."""
    init: Literal["plain", "overtone"] = "plain"
    """`overtone`: embedding with a decaying spectrum, and x0 mixed into early layers (a record of 19 March)."""

    def __post_init__(self) -> None:
        _positive(
            self, "layers", "dim", "heads", "kv_heads", "mlp_mult", "mlp_rank", "mlp_blocks", "rope_base",
            "rope_length", "gate_window", "loop_runs", "stack_runs", "softcap", "embed_std",
        )  # fmt: skip
        _at_most(self, MOST)
        for name in ("mlp_rank", "norm_pct", "value_residual_alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must lie between 0 and 1")
        for name, count in (("xsa_layers", self.xsa_layers), ("value_embed.last", self.value_embed.last)):
            if not 0 <= count <= self.layers:
                raise InputError(f"`{name}` {count} must lie between 0 and `layers` {self.layers}")
        if self.gate_window > self.dim:
            raise InputError(f"`gate_window` {self.gate_window} must be at most `dim` {self.dim}")
        self._check_heads()
        self._check_mlp()
        self._check_depth()
        self._check_lanes()
        self._check_combinations()

    def _check_heads(self) -> None:
        if self.dim % self.heads:
            raise InputError(f"`dim` {self.dim} is not a multiple of `heads` {self.heads}")
        if self.heads % self.kv_heads:
            raise InputError(f"`heads` {self.heads} is not a multiple of `kv_heads` {self.kv_heads}")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise InputError(
                f"`rope_dims` {self.rope_dims} must be even and at most the head dimension {self.head_dim}"
            )
        if self.rope_scaling != "none" and (self.rope_factor < 1 or self.rope_dims < 4):
            raise InputError(
                f"`rope_scaling: {self.rope_scaling}` with `rope_factor` {self.rope_factor} and `rope_dims` "
                f"{self.rope_dims}: the factor must be at least 1, the dimensions at least 4"
            )
        if self.attention == "differential" and self.head_dim % 2:
            raise InputError(f"`attention: differential` halves heads; their dimension {self.head_dim} must be even")

    def _check_mlp(self) -> None:
        if not 1 <= self.mlp_mult * self.dim <= MOST_HIDDEN:
            raise InputError(
                f"`mlp_mult` {self.mlp_mult} times `dim` {self.dim} must lie between 1 and {MOST_HIDDEN} hidden units"
            )
        if self.mlp_mult * self.dim != int(self.mlp_mult * self.dim):
            raise InputError(f"`mlp_mult` {self.mlp_mult} times `dim` {self.dim} is not a whole number of hidden units")
        if self.mlp_rank * self.dim != self.mlp_inner:
            raise InputError(f"`mlp_rank` {self.mlp_rank} times `dim` {self.dim} is not a whole number of channels")
        if self.dim % self.mlp_blocks or self.mlp_hidden % self.mlp_blocks:
            raise InputError(
                f"`mlp_blocks` {self.mlp_blocks} must divide `dim` {self.dim} and the {self.mlp_hidden} hidden units"
            )

    def _check_depth(self) -> None:
        if self.loop_runs > 1 and not 0 <= self.loop_start <= self.loop_end < self.layers:
            raise InputError(
                f"`loop_start` {self.loop_start} and `loop_end` {self.loop_end} must name layers, in order, of "
                f"0 to {self.layers - 1}; set `loop_runs: 1` for no recurrence"
            )
        virtual = self.stack_runs * (self.layers + (self.loop_runs - 1) * (self.loop_end - self.loop_start + 1))
        if virtual > 256:
            raise InputError(f"`loop_runs` {self.loop_runs} makes {virtual} virtual layers; at most 256 are allowed")
        if self.loop_runs > 1 and self.stack_runs > 1:
            raise InputError("`loop_runs` and `stack_runs` both repeat layers: set one of them to 1")
        if self.loop_pos != "none" and self.repeats == 1:
            raise InputError("`loop_pos` marks repeats and nothing is repeated: set `loop_runs` or `stack_runs`")
        if self.parallel == "none" or self.parallel_from is None:
            return
        if not 0 <= self.parallel_from <= self.layers:
            raise InputError(f"`parallel_from` {self.parallel_from} must name a layer (0 to {self.layers}) or be null")

    def _check_lanes(self) -> None:
        """Lanes split once, in the decoder: a layer that also runs before the split would need both forms."""
        if not self.lanes:
            return
        assert self.parallel_from is not None
        last_repeated = self.loop_end if self.loop_runs > 1 else -1
        if self.parallel_from <= max(last_repeated, self.layers // 2 - 1):
            raise InputError(
                f"`parallel_from` {self.parallel_from} must lie in the decoder and beyond `loop_end` {self.loop_end} "
                f"with `parallel: {self.parallel}`"
            )

    def _check_combinations(self) -> None:
        late = self.parallel != "none" and self.parallel_from is not None and self.parallel_from < self.layers
        if self.norm == "hybrid" and (late or self.token_gate):
            raise InputError(
                "`norm: hybrid` normalises after the MLP of a sequential block: set `parallel: none` and "
                "`token_gate: false`"
            )
        if self.token_gate and self.lanes:
            raise InputError(f"`token_gate` gates a block's one output, `parallel: {self.parallel}` has two: drop one")
        if self.attn_gate_query and self.attn_gate != "window":
            raise InputError(f"`attn_gate_query` belongs to `attn_gate: window`, here it is {self.attn_gate!r}")

    @property
    def head_dim(self) -> int:
        """Dimensions per head, D."""
        return self.dim // self.heads

    @property
    def kv_dim(self) -> int:
        """Width of keys and values."""
        return self.kv_heads * self.head_dim

    @property
    def mlp_hidden(self) -> int:
        """Hidden units of the MLP, F; two thirds for the gated activations, in steps of 8."""
        hidden = int(self.mlp_mult * self.dim)
        return max(hidden * 2 // 24 * 8, 8) if self.activation in ("swiglu", "star_swiglu") else hidden

    @property
    def mlp_inner(self) -> int:
        """Channels between the two factors of a low-rank up-projection."""
        return int(self.mlp_rank * self.dim)

    @property
    def lanes(self) -> bool:
        """Whether the decoder ends in two lanes."""
        return self.parallel in ("lanes", "lanes_sequential", "merge") and self.parallel_from is not None

    @property
    def repeats(self) -> int:
        """Runs of whatever is repeated."""
        return max(self.loop_runs, self.stack_runs)
