"""The LeakyReLU^2 MLP in two persistent matrix products with their activation in the epilogue (after PR 1530).

    forward    p = x W1^T    f = p^2 where p > 0, (slope p)^2 otherwise    y = f W2^T
    backward   df = g W2     dp = df 2 sqrt(f) (1 where p > 0, -|slope| otherwise)
               dW2 = g^T f   dW1 = dp^T x   dx = dp W1

p is nowhere stored: f and one bit of sign for each p give its derivative, because |df/dp| = 2 sqrt(f) (1 or |slope|).
That halves what the layer keeps, and root and rounding lose no more than the rounding of p did. All products
but the two with an epilogue are the library's. N tokens, d width, F hidden units; F a multiple of 64, d of 8.

The sign of unit 64 a + 8 b + c of a row is bit b of its byte 8 a + c: the eight signs of a byte lie in the registers of
one thread of the matrix unit's result, so that packing them moves nothing.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


class Tile(NamedTuple):
    """What one program computes at a time, and how."""

    tokens: int
    units: int
    depth: int
    """Of one step of the inner product."""
    warps: int
    stages: int
    """Steps in flight."""


TILE = Tile(tokens=128, units=256, depth=64, warps=8, stages=3)
"""The fastest of twelve for both products on an H200, d = 512 and F = 2048 (docs/performance.md)."""


@triton.jit
def _bytes_at(signs, m, n, ROWS: tl.constexpr, UNITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    row = (m + tl.arange(0, BM))[:, None]
    column = (n // 8 + tl.arange(0, BN // 8))[None, :]
    return signs + row.to(tl.int64) * (UNITS // 8) + column, (row < ROWS) & (column < UNITS // 8)


@triton.jit
def _squared(p, slope, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    rounded = p.to(dtype).to(tl.float32)
    leaky = tl.where(rounded > 0, rounded, rounded * slope)
    return (leaky * leaky).to(dtype)


@triton.jit
def _corner(turn, UNITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):  # type: ignore[no-untyped-def]
    """First row and unit of a program's tile, in some of the last turn beyond the last row: nothing is read or written
    there.
    """
    across = tl.cdiv(UNITS, BN)
    tile = turn * tl.num_programs(0) + tl.program_id(0)
    return tile // across * BM, tile % across * BN


@triton.jit
def _up(  # type: ignore[no-untyped-def]
    x, w, f, signs, slope, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNITS: tl.constexpr,
    TURNS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    shifts = tl.arange(0, 8)[None, None, :, None]
    for turn in tl.range(0, TURNS, flatten=True):
        m, n = _corner(turn, UNITS, BM, BN)
        p = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, WIDTH, BK):
            p = tl.dot(x.load([m, k]), w.load([n, k]).T, p)
        bits = tl.reshape((p < 0).to(tl.int32), (BM, BN // 64, 8, 8)) << shifts
        place, inside = _bytes_at(signs, m, n, ROWS, UNITS, BM, BN)
        tl.store(place, tl.reshape(tl.sum(bits, 2), (BM, BN // 8)).to(tl.uint8), mask=inside)
        low, high = tl.split(tl.permute(tl.reshape(p, (BM, 2, BN // 2)), (0, 2, 1)))
        f.store([m, n], _squared(low, slope, f.dtype))
        f.store([m, n + BN // 2], _squared(high, slope, f.dtype))


@triton.jit
def _down(  # type: ignore[no-untyped-def]
    g, w, f, signs, dp, slope, ROWS: tl.constexpr, WIDTH: tl.constexpr, UNITS: tl.constexpr,
    TURNS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    shifts = tl.arange(0, 8)[None, None, :, None]
    for turn in tl.range(0, TURNS, flatten=True):
        m, n = _corner(turn, UNITS, BM, BN)
        place, inside = _bytes_at(signs, m, n, ROWS, UNITS, BM, BN)
        packed = tl.load(place, mask=inside, other=0)  # on its way while the product is computed
        df = tl.zeros((BM, BN), tl.float32)
        for k in tl.range(0, WIDTH, BK):
            df = tl.dot(g.load([m, k]), w.load([k, n]), df)
        bits = tl.reshape(packed, (BM, BN // 64, 1, 8)).to(tl.int32) >> shifts
        negative = tl.reshape(bits & 1, (BM, BN)) != 0
        signed = df * tl.where(negative, -2.0 * slope, 2.0)
        low, high = tl.split(tl.permute(tl.reshape(signed, (BM, 2, BN // 2)), (0, 2, 1)))
        dp.store([m, n], (low * tl.sqrt(f.load([m, n]).to(tl.float32))).to(dp.dtype))
        dp.store([m, n + BN // 2], (high * tl.sqrt(f.load([m, n + BN // 2]).to(tl.float32))).to(dp.dtype))


def _schedule(tokens: int, units: int, device: torch.device) -> tuple[int, int]:
    """Programs, one for each multiprocessor (two in the interpreter), and the tiles that each computes in turn."""
    tiles = triton.cdiv(tokens, TILE.tokens) * triton.cdiv(units, TILE.units)
    held = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    return min(held, tiles), triton.cdiv(tiles, held)


def hidden_units(x: Tensor, up: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """x [N, d], up [F, d] to f [N, F] and signs uint8 [N, F / 8]."""
    (tokens, width), units = x.shape, len(up)
    f = x.new_empty(tokens, units)
    signs = x.new_empty(tokens, units // 8, dtype=torch.uint8)
    programs, turns = _schedule(tokens, units, x.device)
    _up[(programs,)](
        TensorDescriptor.from_tensor(x, [TILE.tokens, TILE.depth]),
        TensorDescriptor.from_tensor(up, [TILE.units, TILE.depth]),
        TensorDescriptor.from_tensor(f, [TILE.tokens, TILE.units // 2]),
        signs, slope, tokens, width, units, turns, TILE.tokens, TILE.units, TILE.depth,
        num_warps=TILE.warps, num_stages=TILE.stages,
    )  # fmt: skip
    return f, signs


@torch.library.custom_op("pgolf::leaky_mlp", mutates_args=())
def forward(x: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [N, d], up [F, d], down [d, F] to y [N, d], f [N, F] and signs uint8 [N, F / 8]."""
    f, signs = hidden_units(x, up, slope)
    return f @ down.T, f, signs


@forward.register_fake
def _(x: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    tokens, units = len(x), len(up)
    return torch.empty_like(x), x.new_empty(tokens, units), x.new_empty(tokens, units // 8, dtype=torch.uint8)


@torch.library.custom_op("pgolf::leaky_mlp_backward", mutates_args=())
def backward(g: Tensor, down: Tensor, f: Tensor, signs: Tensor, slope: float) -> Tensor:
    """The gradient dp [N, F] from that of y, g [N, d]."""
    (tokens, width), units = g.shape, f.size(1)
    dp = torch.empty_like(f)
    programs, turns = _schedule(tokens, units, g.device)
    _down[(programs,)](
        TensorDescriptor.from_tensor(g, [TILE.tokens, TILE.depth]),
        TensorDescriptor.from_tensor(down, [TILE.depth, TILE.units]),
        TensorDescriptor.from_tensor(f, [TILE.tokens, TILE.units // 2]),
        signs,
        TensorDescriptor.from_tensor(dp, [TILE.tokens, TILE.units // 2]),
        abs(slope), tokens, width, units, turns, TILE.tokens, TILE.units, TILE.depth,
        num_warps=TILE.warps, num_stages=TILE.stages,
    )  # fmt: skip
    return dp


@backward.register_fake
def _(g: Tensor, down: Tensor, f: Tensor, signs: Tensor, slope: float) -> Tensor:
    return torch.empty_like(f)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.slope = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _gradients(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, up, down, f, signs = ctx.saved_tensors
    g = g.contiguous()
    dp = backward(g, down, f, signs, ctx.slope)
    return dp @ up, dp.T @ x, g.T @ f, None


forward.register_autograd(_gradients, setup_context=_save)


def leaky_mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """n [B, T, d] to [B, T, d]; the weights [F, d] and [d, F] are cast to its type."""
    rows = n.flatten(0, -2).contiguous()
    y: Tensor = forward(rows, up.to(n.dtype), down.to(n.dtype), slope)[0]
    return y.view_as(n)
