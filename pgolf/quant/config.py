"""The `quantize` section: bits and clip per tensor class, and the solver's constants."""

from dataclasses import dataclass

from pgolf.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """Uniform symmetric grid of one tensor class, one scale per row."""

    bits: int = 6
    """Code width b; codes lie in [-c, c] with c = 2^(b-1) - 1."""
    k_sigma: float = 12.85
    """SDClip: the grid ends at k standard deviations of the row (PR 1394)."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"`bits` is {self.bits}; codes are stored as int8, so it must lie between 2 and 8")
        if self.k_sigma <= 0:
            raise InputError(f"`k_sigma` is {self.k_sigma}; it must be greater than 0")

    @property
    def clip(self) -> int:
        """Largest code c."""
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LqerConfig:
    """Low-rank correction of the matrices with the largest rounding error; the published values are PR 1855's."""

    top_k: int = 0
    """Matrices that get one, by the Frobenius norm of their error; 0: none (published: 3)."""
    rank: int = 4
    """Rank of the correction (published: 4)."""
    asymmetric: bool = True
    """Factors in 2 and 4 bits where B fills whole groups; otherwise symmetric (published: true)."""
    factor_bits: int = 4
    """Code width of both symmetric factors (published: 4)."""
    group: int = 64
    """Elements of the asymmetric B under one scale (published: 64; later submissions: 32)."""

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise InputError(f"`top_k` is {self.top_k}; it must be at least 0")
        for name in ("rank", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if not 2 <= self.factor_bits <= 8:
            raise InputError(
                f"`factor_bits` is {self.factor_bits}; codes are stored as int8, so it must lie between 2 and 8"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """Defaults are PR 1394's and 1493's."""

    embed: GridConfig = GridConfig(bits=8, k_sigma=20.0)
    """Tied embedding, quantized as output head."""
    attn: GridConfig = GridConfig()
    """Query, key, value and output projections."""
    mlp: GridConfig = GridConfig()
    """Up and down projections."""
    damp: float = 0.01
    """Added to the Hessian's diagonal, as a fraction of its mean."""
    blocksize: int = 128
    """Columns between two updates of the remaining matrix; changes speed, not the result beyond rounding."""
    small_numel: int = 65_536
    """Tensors with at most this many elements are kept as float16."""
    gate_int8: bool = False
    """Attention gates as int8 rows instead of float16 (GATED_ATTN_QUANT_GATE, PR 1855: true)."""
    lqer: LqerConfig = LqerConfig()
    """Low-rank corrections."""
    scale_steps: int | None = None
    """Row scales on the geometric grid 2^(k / steps), chosen before GPTQ, which rounds to them: a sixth of the bytes,
    and the clip jitters by at most 2^(1 / (2 steps)). null: any float16 (published)."""
    small_bits: int = 10
    """Bits kept of the mantissa of tensors stored as float16, of 10: what the codec need not store (published: 10)."""
    canonical: bool = False
    """MLP neurons and head dimensions in order of falling scale: the same function but for rounding, fewer bytes."""

    def __post_init__(self) -> None:
        if self.damp <= 0:
            raise InputError(f"`damp` is {self.damp}; it must be greater than 0 for the Hessian to be invertible")
        if self.blocksize < 1:
            raise InputError(f"`blocksize` is {self.blocksize}; it must be at least 1")
        if self.scale_steps not in (None, 2, 4, 8, 16, 32):
            raise InputError(f"`scale_steps` is {self.scale_steps}; it must be 2, 4, 8, 16, 32 or null")
        if not 2 <= self.small_bits <= 10:
            raise InputError(f"`small_bits` is {self.small_bits}; it must lie between 2 and 10")
        if self.small_numel < 0:
            raise InputError(f"`small_numel` is {self.small_numel}; it must be at least 0")
