"""The sums of dq as FlashAttention-4's kernel leaves them on Hopper."""

import math


def as_added_up(dq, rows, scale):
    """dq [T, Hkv, D] of one part as the kernel leaves it [Hkv, rows D], nan where nothing is."""
    token_of = rows.token_of.long()
    laid = dq[token_of.clamp_min(0)] / scale
    laid[token_of < 0] = math.nan
    _, heads, dim = laid.shape
    tiles = laid.permute(1, 0, 2).reshape(heads, -1, 2, 4, 2, 8, dim // 8, 4, 2)  # tile, a, w, h, r, b, p, e
    return tiles.permute(0, 1, 2, 6, 3, 5, 7, 4, 8).reshape(heads, -1).float()
