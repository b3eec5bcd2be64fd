"""Ternary matrices in groups of 128 columns (PR 640): three values and a scale.

    sigma = float16(max(mean |w|, 1e-8)),  q = clamp(round(w / sigma), -1, 1),  W^ = q sigma / max(mean |q|, 1e-8)

Means are over a group, the last one filled with zeros to its full length. Dividing by mean |q| undoes the shrinkage.
Five digits t = q + 1 are stored in a byte, t0 + 3 t1 + 9 t2 + 27 t3 + 81 t4, as the published files have them: 1.6 bits
for a code, of Gaussian weights with an entropy of 1.58. What no compressor shrinks is stored as it is.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.errors import InputError

GROUP = 128
DIGITS, PLACES = 5, (1, 3, 9, 27, 81)
"""Of a byte, and what each is worth."""


def packed(codes: Tensor) -> Tensor:
    """The bytes of codes [m, n], row by row, the last one filled with digits 0; int8 [ceil(m n / 5)]."""
    digits = F.pad(codes.flatten().int() + 1, (0, -codes.numel() % DIGITS)).view(-1, DIGITS)
    return (digits * digits.new_tensor(PLACES)).sum(1).to(torch.uint8).view(torch.int8)


def unpacked(stored: Tensor, rows: int) -> Tensor:
    """The codes int8 [rows, n] of `packed` bytes, for at least 5 rows; InputError for a byte that holds no 5 digits."""
    values = stored.view(torch.uint8).int()
    if (values >= 3**DIGITS).any():
        raise InputError("a byte of ternary codes is beyond its five digits: run `pgolf compress` again")
    digits = values[:, None] // values.new_tensor(PLACES) % 3
    columns = digits.numel() // rows  # fewer than 5 digits are filling
    return (digits.flatten()[: rows * columns].view(rows, columns) - 1).to(torch.int8)


def packed_bytes(shape: tuple[int, ...]) -> tuple[int]:
    """Shape of the packed codes of a matrix [m, n]."""
    return (-(-math.prod(shape) // DIGITS),)


def groups(columns: int) -> int:
    """How many groups a row has."""
    return -(-columns // GROUP)


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [m, n] and sigma float16 [m, groups] of W [m, n]."""
    grouped = _grouped(weight.float())
    sigma = grouped.abs().mean(dim=2).clamp_min(1e-8).half().clamp_min(2.0**-24)
    if not torch.isfinite(sigma).all():
        raise InputError("the scale of a group is beyond float16: train again with a lower rate")
    codes = (grouped / sigma.float()[..., None]).round().clamp(-1, 1).to(torch.int8)
    return codes.flatten(1)[:, : weight.size(1)].contiguous(), sigma


def restored(stored: Tensor, sigma: Tensor) -> Tensor:
    """W^ [m, n], float32, of packed codes."""
    codes = unpacked(stored, len(sigma))
    grouped = _grouped(codes.float())
    step = sigma.float() / grouped.abs().mean(dim=2).clamp_min(1e-8)
    return (grouped * step[..., None]).flatten(1)[:, : codes.size(1)]


def _grouped(values: Tensor) -> Tensor:
    """[m, groups, 128], filled with zeros."""
    width = groups(values.size(1)) * GROUP
    return F.pad(values, (0, width - values.size(1))).view(len(values), -1, GROUP)
