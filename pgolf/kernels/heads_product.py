"""Queries, keys and values of all heads, normed, rotated and sharpened (`pgolf.kernels.heads`), as one product.

    y = [q' k' v] of x = n Wqkv^T,  1 / rms(x) over a head's dimensions

On Hopper, where quack-kernels (github.com/Dao-AILab/quack) is installed, norm, rotation and gain lie in the epilogue of
the product: x stays float32 and is nowhere stored, and the pass over q and k (3 U) is gone. Anywhere else it is the
library's product and that pass. The kernel is compiled when first called, about four seconds, and kept on disk.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from pgolf.kernels.epilogue import FAST, Tile, launch, present
from pgolf.kernels.heads import Shape, heads_forward

TILE = Tile(rows=64, columns=256, pingpong=True)
"""The fastest of those tried on an H100, for operands of 8 and of 16 bits (docs/performance.md)."""


@functools.cache
def _epilogue(heads: int, kv_heads: int, head_dim: int) -> Any:
    from pgolf.kernels.heads_epilogue import epilogue

    return epilogue(heads, kv_heads, head_dim)


def fits(n: Tensor, shape: Shape, half: int) -> bool:
    """Whether the one kernel can be had: for Hopper, at most 16 bits, whole heads in a tile, and dimensions that are
    rotated together in one thread and in one part (32 columns) of the tile.
    """
    columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    return (
        n.device.type == "cuda"
        and torch.cuda.get_device_capability(n.device)[0] == 9
        and n.dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
        and n.size(1) % 16 == 0
        and TILE.columns % shape.head_dim == 0
        and shape.head_dim % 32 == 0
        and columns % TILE.columns == 0
        and half in (8, 16)
        and present()
    )


def heads_product(
    x: Tensor, weight: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, shape: Shape, factor: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """n = x [T, d], or with `factor` [T] its rows times that, weight [(H + 2 Hkv) D, d], gain [H] float32, cos and sin
    [period, r / 2] to y [T, (H + 2 Hkv) D] and 1 / rms [T, H + 2 Hkv] float32, of queries and keys. y is of `dtype`.
    """
    dtype = dtype or x.dtype
    if factor is not None and fits(x, shape, cos.size(1)):
        return fused(x, factor, weight, gain, cos, sin, shape, dtype)
    y = x.to(dtype) @ weight.to(dtype).T
    if factor is not None:
        y.copy_(y * factor[:, None])
    return y, heads_forward(y, gain, cos, sin, shape)


def fused(
    x: Tensor, factor: Tensor, weight: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, shape: Shape,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`heads_product` as one kernel, where it `fits`."""
    y = x.new_empty(len(x), len(weight), dtype=dtype)
    inverse = x.new_empty(len(x), len(weight) // shape.head_dim, dtype=torch.float32)
    operands = {"rows": factor[None], "factor": gain.detach(), "cosine": cos, "crossed": sin, "inverse": inverse}
    launch(
        _epilogue(shape.heads, shape.kv_heads, shape.head_dim).gemm, x, weight, y, epi_args=operands,
        tile_M=TILE.rows, tile_N=TILE.columns, cluster_M=TILE.cluster[0], cluster_N=TILE.cluster[1],
        pingpong=TILE.pingpong, post_init_attrs=FAST if x.dtype.itemsize == 1 else (),
    )  # fmt: skip
    return y, inverse
