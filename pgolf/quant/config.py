"""The `quantize` section: bits and clip per tensor class, and the solver's constants."""

from dataclasses import dataclass
from typing import Literal

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
class TensorConfig:
    """What differs from its class in the matrices that a pattern names."""

    name: str
    """Whole name of a matrix, with the wildcards of file names: `blocks.3.*`, `blocks.*.mlp.fc.weight`."""
    bits: int | None = None
    """Code width; null: that of the class."""
    k_sigma: float | None = None
    """Clip in standard deviations; null: that of the class."""
    k_times: float = 1.0
    """Factor of the clip, for clips by layer and depth (PR 1412: early, loop, middle and late layers)."""

    def __post_init__(self) -> None:
        if self.k_times <= 0:
            raise InputError(f"`k_times` is {self.k_times}; it must be greater than 0")
        self.on(GridConfig())

    def on(self, grid: GridConfig) -> GridConfig:
        """The class's grid as this entry changes it."""
        bits = grid.bits if self.bits is None else self.bits
        k_sigma = grid.k_sigma if self.k_sigma is None else self.k_sigma
        return GridConfig(bits=bits, k_sigma=k_sigma * self.k_times)


@dataclass(frozen=True, kw_only=True, slots=True)
class LqerConfig:
    """Low-rank correction of the matrices with the largest rounding error; the published values are PR 1855's."""

    top_k: int = 0
    """Matrices that get one, those of the largest errors; 0: none (published: 3)."""
    by: Literal["norm", "weighted"] = "norm"
    """Size of an error E: its Frobenius norm (published), or tr(E H E^T)."""
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
class FitConfig:
    """A size to reach: one factor on every clip, and widths to go with it (`pgolf.quant.fit`)."""

    target_bytes: int | None = None
    """Code and model end just below it; null: the clips stay as they are."""
    code_bytes: int | None = None
    """Of that for the code; null: what the packed program has."""

    def __post_init__(self) -> None:
        if self.target_bytes is not None and self.target_bytes <= (self.code_bytes or 0):
            raise InputError(f"`target_bytes` is {self.target_bytes}; it must exceed `code_bytes`, and 0")
        if (self.code_bytes or 0) < 0:
            raise InputError(f"`code_bytes` is {self.code_bytes}; it must not be negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """Defaults are PR 1394's and 1493's."""

    embed: GridConfig = GridConfig(bits=8, k_sigma=20.0)
    """Tied embedding, quantized as output head."""
    attn: GridConfig = GridConfig()
    """Query, key, value and output projections."""
    mlp: GridConfig = GridConfig()
    """Up and down projections."""
    tensors: tuple[TensorConfig, ...] = ()
    """Exceptions by name; every entry that matches applies, in this order."""
    fit: FitConfig = FitConfig()
    """Fit to the cap."""
    method: Literal["gptq", "trellis", "rtn", "ternary"] = "gptq"
    """`gptq`: with error feedback; `rtn`: round to nearest, as QAT trains for, and GPTQ-lite with percentile steps;
    `trellis`: with error feedback, and the levels of a column together obey a code, which saves 0.18 to 0.22 bits per
    weight at the same error where `compress.codec` is `gauss` or `auto`, at the step k / c, without clipping;
    `ternary`: matrices of 2 bits in groups with scales of their own (PR 640), all others with error feedback."""
    trellis_states: Literal[8, 16, 32, 64, 256] = 64
    """Of `trellis`: more of them save more and take longer to search; reading takes the same time."""
    steps: Literal["deviation", "loss", "extreme", "percentile", "percentile_row"] = "deviation"
    """Rule of the row scales. `deviation`: SDClip (PR 1394). `loss`: where every weight costs the same loss, at the
    rate of SDClip's k; needs `calibrate.sensitivity`. `extreme`: the largest value (late QAT). `percentile`: GPTQ-lite,
    one of five for a matrix (PR 374, 635), `percentile_row`: for a row (PR 401); k is not used in the last three."""
    least_max: float = 0.0
    """Least clip of `extreme` and `percentile` steps, absolute (published: 1)."""
    hessian_aware: float = 0.0
    """Weight of the rows' inputs in SDClip (PR 1412: 0.175)."""
    rotate: bool = False
    """Rows of matrices with a power of two of them mixed by a Hadamard matrix before rounding (a fork of PR 401)."""
    columns: Literal["none", "activation", "loss"] = "none"
    """Column scales, stored. `activation`: (rms of the input)^-power, as AWQ scales weights before rounding; `loss`:
    where every column costs the same after error feedback."""
    columns_power: float = 0.5
    """Exponent of `activation`."""
    rate: float = 0.0
    """Price of a bit in the error feedback, in squared steps; ln(2) / 6 = 0.116 is what a bit is worth at high rate."""
    row_block: int = 0
    """Rows between two feedbacks of errors to other rows (needs `calibrate.sensitivity`); 0: rows are independent."""
    damp_rows: float = 0.1
    """Added to the diagonal of the outputs' sensitivity for that, as a fraction of its mean."""
    act_order: bool = True
    """Columns in order of falling input energy; false: as they come."""
    dedup: Literal["none", "floor", "even"] = "none"
    """Only even codes (`pgolf.quant.coarsen`; PR 1520: floor)."""
    prune_ones: int = 0
    """Codes +-1 of 6-bit grids that become 0, those of the smallest scales first (PR 609, 1019)."""
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
        if self.method == "ternary" and self.canonical:
            raise InputError("`canonical` moves columns, which groups of ternary codes do not allow: set it to false")
        if self.method == "trellis" and (self.row_block or self.dedup != "none" or self.prune_ones):
            raise InputError("`method: trellis` goes with neither `row_block` nor `dedup` nor `prune_ones`: unset them")
        if self.method == "trellis" and self.canonical and self.lqer.top_k and self.lqer.asymmetric:
            raise InputError(
                "`method: trellis` with `canonical` needs to know the order of rows before it rounds, which asymmetric "
                "corrections may forbid: set `lqer.asymmetric` or `canonical` to false"
            )
        if self.rotate and (self.method == "ternary" or self.canonical):
            raise InputError("`rotate` mixes rows: it goes with neither `method: ternary` nor `canonical`; unset one")
        if self.damp_rows <= 0:
            raise InputError(f"`damp_rows` is {self.damp_rows}; it must be greater than 0")
        if self.blocksize < 1:
            raise InputError(f"`blocksize` is {self.blocksize}; it must be at least 1")
        for name in ("least_max", "hessian_aware", "rate", "row_block", "prune_ones"):
            if getattr(self, name) < 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; it must be at least 0")
        if self.scale_steps not in (None, 2, 4, 8, 16, 32):
            raise InputError(f"`scale_steps` is {self.scale_steps}; it must be 2, 4, 8, 16, 32 or null")
        if not 2 <= self.small_bits <= 10:
            raise InputError(f"`small_bits` is {self.small_bits}; it must lie between 2 and 10")
        if self.small_numel < 0:
            raise InputError(f"`small_numel` is {self.small_numel}; it must be at least 0")
