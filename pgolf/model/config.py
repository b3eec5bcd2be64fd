"""The `model` section: every shape and constant of the architecture."""

from dataclasses import dataclass
from typing import Literal

from pgolf.errors import InputError

MOST = {"layers": 256, "dim": 16_384, "loop_runs": 64}
MOST_HIDDEN = 2**20
"""Far beyond 16 MB; a hostile artifact must not make its reader build more."""


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
    """Hidden width of the MLP as a multiple of dim (PR 1218: 4; before: 3)."""
    leaky_slope: float = 0.5
    """Slope for negative inputs inside LeakyReLU(slope)^2; 0 is ReLU^2 (PR 493, 549)."""
    rope_dims: int = 16
    """Leading dimensions of each head that rotate (partial RoPE, PR 315)."""
    rope_base: float = 10000.0
    """RoPE base; the exponent's denominator is rope_dims."""
    qk_gain: float = 5.25
    """Initial gain of the queries after QK-norm and RoPE, learned per head (PR 1125, 1493)."""
    xsa_layers: int = 11
    """Exclusive self-attention on this many last layers (PR 265: 3; PR 1019: all)."""
    ln_scale: bool = True
    """Multiply the normalised input of attention and MLP by 1/sqrt(i + 1), i the physical layer (PR 315)."""
    attn_gate: Literal["none", "sparse"] = "none"
    """Gate per token and head on the attention output: `sparse` reads `gate_window` channels (PR 1787)."""
    attn_gate_scale: float = 1.0
    """Factor on the gate's logit (PR 1787: 1; PR 1855: 0.5)."""
    smear: Literal["none", "window"] = "none"
    """Mix the previous token's embedding into each token: `window` reads `gate_window` channels (PR 1667, 1855)."""
    gate_window: int = 12
    """Leading channels that the sparse gate and the smear gate read."""
    parallel: Literal["gptj", "lanes"] = "gptj"
    """What runs from `parallel_from` on: `gptj`, attention and MLP of a layer read the same input (PR 1412); `lanes`,
    they read two residual streams with learned routing (PR 1530, 1855)."""
    parallel_from: int | None = 7
    """First physical layer of the parallel form; null: none."""
    lane_init: float = 1.1
    """Initial factor that carries a lane past a layer (PR 1530)."""
    loop_start: int = 3
    """First physical layer of the repeated segment (depth recurrence, PR 1285, 1493)."""
    loop_end: int = 5
    """Last physical layer of the repeated segment, included."""
    loop_runs: int = 3
    """How often the segment runs once recurrence is on; 1 switches recurrence off for good."""
    softcap: float = 30.0
    """Logits become softcap * tanh(logits / softcap)."""
    embed_std: float = 0.005
    """Standard deviation of the tied embedding at initialisation."""

    def __post_init__(self) -> None:
        positive: tuple[str, ...] = (
            "layers",
            "dim",
            "heads",
            "kv_heads",
            "mlp_mult",
            "rope_base",
            "gate_window",
            "loop_runs",
        )
        positive += ("softcap", "embed_std")
        for name in positive:
            if getattr(self, name) <= 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be greater than 0")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at most {most}")
        if not 1 <= self.mlp_mult * self.dim <= MOST_HIDDEN:
            raise InputError(
                f"`mlp_mult` {self.mlp_mult} times `dim` {self.dim} must lie between 1 and {MOST_HIDDEN} hidden units"
            )
        if self.dim % self.heads:
            raise InputError(f"`dim` {self.dim} is not a multiple of `heads` {self.heads}")
        if self.mlp_mult * self.dim != self.mlp_hidden:
            raise InputError(f"`mlp_mult` {self.mlp_mult} times `dim` {self.dim} is not a whole number of hidden units")
        if self.heads % self.kv_heads:
            raise InputError(f"`heads` {self.heads} is not a multiple of `kv_heads` {self.kv_heads}")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise InputError(
                f"`rope_dims` {self.rope_dims} must be even and at most the head dimension {self.head_dim}"
            )
        if not 0 <= self.xsa_layers <= self.layers:
            raise InputError(f"`xsa_layers` {self.xsa_layers} must lie between 0 and `layers` {self.layers}")
        if self.loop_runs > 1 and not 0 <= self.loop_start <= self.loop_end < self.layers:
            raise InputError(
                f"`loop_start` {self.loop_start} and `loop_end` {self.loop_end} must name layers, in order, of "
                f"0 to {self.layers - 1}; set `loop_runs: 1` for no recurrence"
            )
        virtual = self.layers + (self.loop_runs - 1) * (self.loop_end - self.loop_start + 1)
        if virtual > 256:
            raise InputError(f"`loop_runs` {self.loop_runs} makes {virtual} virtual layers; at most 256 are allowed")
        if self.parallel_from is not None and not 0 <= self.parallel_from <= self.layers:
            raise InputError(f"`parallel_from` {self.parallel_from} must name a layer (0 to {self.layers}) or be null")
        if self.gate_window > self.dim:
            raise InputError(f"`gate_window` {self.gate_window} must be at most `dim` {self.dim}")
        self._check_lanes()

    def _check_lanes(self) -> None:
        """Lanes split once, in the decoder: a layer that also runs before the split would need both forms."""
        if not self.lanes:
            return
        assert self.parallel_from is not None
        last_repeated = self.loop_end if self.loop_runs > 1 else -1
        if self.parallel_from <= max(last_repeated, self.layers // 2 - 1):
            raise InputError(
                f"`parallel_from` {self.parallel_from} must lie in the decoder and beyond `loop_end` {self.loop_end} "
                "with `parallel: lanes`"
            )

    @property
    def head_dim(self) -> int:
        """Dimensions per head, D."""
        return self.dim // self.heads

    @property
    def mlp_hidden(self) -> int:
        """Hidden units of the MLP, F."""
        return int(self.mlp_mult * self.dim)

    @property
    def lanes(self) -> bool:
        """Whether the decoder ends in two lanes."""
        return self.parallel == "lanes" and self.parallel_from is not None
