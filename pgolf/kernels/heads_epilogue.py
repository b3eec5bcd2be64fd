"""QK-norm, partial rotation and query gain in the epilogue of a product, for Hopper: `epilogue`, of `heads_product`.

Written with the operators of quack-kernels (github.com/Dao-AILab/quack, CuTe DSL): of use only where that package is,
and imported only there. A thread of the matrix unit holds, of its rows, columns 8 j + c and 8 j + c + 1 with one even
c < 8 for all j. Dimensions that are rotated together are a multiple of 8 apart: both lie in the same thread, and
rotating moves nothing. Which of a thread's values is which is known while the kernel is compiled; only c is not.

The tile passes through registers twice: first for the sums of squares, and each rotated value notes its partner
(the same register under another name); then to be written.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-subclassing-any

import functools
import hashlib
import inspect
import sys
from typing import Any

from pgolf.kernels.heads import LEAST_GAIN, NORM_EPS, Shape

try:
    import cutlass
    import cutlass.cute as cute
    from cutlass import Float32, Int32
    from quack.compile_utils import make_fake_tensor
    from quack.cute_dsl_utils import torch2cute_dtype_map
    from quack.epilogue import gemm_epilogue
    from quack.epilogue.head_rmsnorm import HeadRstd
    from quack.epilogue.ops import ColVecLoad, EpiOp
except ImportError:  # a packed program, which is one module, is loaded without them too
    HeadRstd = EpiOp = object


@functools.cache
def _version() -> str:
    """Compiled kernels are kept on disk under a key that does not see the code of operators."""
    return hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()


def _select(condition, a, b):
    return Float32(cutlass.select_(condition, Float32(a), Float32(b)))


def _heads(ctx, dim: int) -> list[Any]:
    """Numbers of the heads in this tile."""
    count = ctx.tile_N // dim
    return [ctx.tile_coord_mnkl[1] * count + i for i in range(count)]


class HeadFactor(HeadRstd):
    """gain_h / rms for queries, 1 / rms for keys, 1 for values. Operand: gain [H] float32."""

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__(name, NORM_EPS)
        self.shape = shape

    def config_key(self):  # noqa: D102
        return (_version(), self.eps, *self.shape)

    def _group_cols(self, arg):
        return self.shape.head_dim

    def host_arg_key(self, value):  # noqa: D102
        return (torch2cute_dtype_map[value.dtype],)

    def host_fake_arg(self, key, fctx):  # noqa: D102
        return make_fake_tensor(key[0], (self.shape.heads,), leading_dim=0, divisibility=1)

    def host_call_arg(self, value, key):  # noqa: D102
        return value

    def host_validate(self, value, *, n, tile_N, **_):  # noqa: D102
        super().host_validate(self.shape.head_dim, n=n, tile_N=tile_N)

    def begin(self, gemm, param, smem_tensor, ctx):  # noqa: D102
        shape, gains = self.shape, []
        for head in _heads(ctx, shape.head_dim):
            gain = Float32(param[cutlass.min(head, shape.heads - 1)])
            gain = _select(gain > -LEAST_GAIN, _select(gain < LEAST_GAIN, LEAST_GAIN, gain), gain)
            gains.append((_select(head < shape.heads, gain, 1.0), head >= shape.heads + shape.kv_heads))
        return [self.stats_begin(gemm, smem_tensor, ctx, shape.head_dim), gains]

    def begin_loop(self, gemm, state, epi_coord):  # noqa: D102
        stats, gains = state
        return [self.stats_slice(stats, epi_coord), gains[epi_coord[1] * gemm.epi_tile[1] // self.shape.head_dim]]

    def fn_prepare(self, gemm, state, paired):  # noqa: D102
        stats, (gain, is_value) = state
        out = HeadRstd.fn_prepare(self, gemm, [stats], paired)
        for i in range(cute.size(out)):
            out[i] = _select(is_value, 1.0, out[i] * gain)
        return out


class Cosine(EpiOp):
    """cos of every element's angle: 1 in values and behind the rotated dimensions. Operand: a table [period, r / 2]."""

    fn_port = "value"

    def __init__(self, name: str, shape: Shape) -> None:
        super().__init__(name)
        self.shape = shape

    def config_key(self):  # noqa: D102
        return (_version(), *self.shape)

    def host_arg_key(self, value):  # noqa: D102
        return torch2cute_dtype_map[value.dtype], value.shape[1]

    def host_fake_arg(self, key, fctx):  # noqa: D102
        dtype, half = key
        return make_fake_tensor(dtype, (cute.sym_int(), half), leading_dim=1, divisibility=half)

    def param_fields(self):  # noqa: D102
        return [(self.name, object, None)]

    def to_params(self, gemm, args):  # noqa: D102
        return {self.name: getattr(args, self.name)}

    def begin(self, gemm, param, smem_tensor, ctx):  # noqa: D102
        half, columns, dim = param.shape[1], gemm.epi_tile[1], self.shape.head_dim
        assert gemm.atom_layout_mnk[1] == 1, "groups of warps lie side by side"
        assert half % 8 == 0, "partners lie in two threads"
        assert dim % columns == columns % (2 * half) == 0, "partners, or a head, lie in two parts of the tile"
        own = ctx.partition_for_epilogue_fn(cute.make_identity_tensor((ctx.tile_M, ctx.tile_N)))
        own = cute.group_modes(own, 3, cute.rank(own))
        row, column = own[0]
        row += ctx.tile_coord_mnkl[0] * ctx.tile_M
        table = {}
        for down, right in (cute.crd2idx(i, own.layout) for i in range(cute.size(own))):
            if right < 2 * half and (down, right % half) not in table:
                table[down, right % half] = Float32(param[(row + down) % param.shape[0], column + right % half])
        plain = [head >= self.shape.heads + self.shape.kv_heads for head in _heads(ctx, dim)]
        return own, half, table, plain, {}

    def begin_loop(self, gemm, state, epi_coord):
        """With the coordinate: where this part's elements are, in rows and columns from the thread's first."""
        own, half, table, plain, partners = state
        part = own[None, None, None, epi_coord]
        corner = cute.crd2idx((0, 0, 0, epi_coord), own.layout)
        steps = (cute.crd2idx(i, part.layout) for i in range(cute.size(part)))
        places = [(corner[0] + down, corner[1] + right) for down, right in steps]
        return part.layout.shape, places, half, table, plain, partners

    def fn_prepare(self, gemm, state, paired):  # noqa: D102
        layout, places, half, table, plain, partners = state
        out = cute.make_rmem_tensor(layout, Float32)
        for i, (down, right) in enumerate(places):
            head, dimension = divmod(right, self.shape.head_dim)
            if dimension < 2 * half:
                angle = table[down, dimension % half]
                value = self.value(angle if dimension < half else -angle, partners.get((down, right)), angle)
                out[i] = _select(plain[head], self.neutral(), value)
            else:
                out[i] = self.neutral()
        return out

    def neutral(self):
        """Where nothing is rotated."""
        return Float32(1.0)

    def value(self, signed, partner, angle):
        """The cosine."""
        return angle


class Crossed(Cosine):
    """What rotation adds of an element's partner: b sin to a, -a sin to b; 0 elsewhere. Operand: a table of sines."""

    def fn_sink_flush(self, gemm, state, frag):  # noqa: D102
        _, places, half, _, _, partners = state
        number = {place: i for i, place in enumerate(places)}
        for (down, right), i in number.items():
            dimension = right % self.shape.head_dim
            if dimension < 2 * half:
                other = right + half if dimension < half else right - half
                partners[down, other] = Float32(frag[i])

    def neutral(self):
        """Of negative sign: the compiler leaves out adding -0, not 0. Written as a number the sign would get lost."""
        return Int32(-(2**31)).bitcast(Float32)

    def value(self, signed, partner, angle):
        """The partner times its signed sine."""
        return partner * signed


def _first_pass(acc, rows):
    x = acc * rows
    return {"factor": x * x, "crossed": x}


def _normed_heads(acc, rows, factor, cosine, crossed):
    return {"D": (acc * rows * cosine + crossed) * factor}


@functools.cache
def epilogue(heads: int, kv_heads: int, head_dim: int) -> Any:
    """The product's epilogue: operands rows [1, T], factor (the gain), cosine, crossed (the sines); inverse
    [T, H + 2 Hkv] comes out.
    """
    shape = Shape(heads, kv_heads, head_dim, 0)
    factor = HeadFactor("factor", shape)
    return gemm_epilogue(
        ops={
            "rows": ColVecLoad("rows"), "factor": factor, "cosine": Cosine("cosine", shape),
            "crossed": Crossed("crossed", shape),
        },
        prepass=_first_pass, prepass_outs=("factor", "crossed"), extra_ops=(factor.out("inverse"),),
    )(_normed_heads)  # fmt: skip
