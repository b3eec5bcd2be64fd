"""Ternary matrices in groups of 128 columns (PR 640): three values and a scale.

    sigma = float16(max(mean |w|, 1e-8)),  q = clamp(round(w / sigma), -1, 1),  W^ = q sigma / max(mean |q|, 1e-8)

Means are over a group, the last one filled with zeros to its full length. Dividing by mean |q| undoes the shrinkage.
The published files pack five digits q + 1 into a byte, or two masks; the container's coder needs their entropy, which
is less than either.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.errors import InputError

GROUP = 128


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


def restored(codes: Tensor, sigma: Tensor) -> Tensor:
    """W^ [m, n], float32."""
    grouped = _grouped(codes.float())
    step = sigma.float() / grouped.abs().mean(dim=2).clamp_min(1e-8)
    return (grouped * step[..., None]).flatten(1)[:, : codes.size(1)]


def _grouped(values: Tensor) -> Tensor:
    """[m, groups, 128], filled with zeros."""
    width = groups(values.size(1)) * GROUP
    return F.pad(values, (0, width - values.size(1))).view(len(values), -1, GROUP)
