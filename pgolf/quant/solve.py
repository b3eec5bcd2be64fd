"""Codes of all matrices: those of one shape are solved together on a GPU, one by one on a CPU.

Rounding a column x (in steps) with a price on bits: a Gaussian model of a row with codes of variance v charges
q^2 log2(e) / (2 v) bits, so the least of

    (x - q)^2 + rate u_j log2(e) / (2 v) q^2,   u_j = U_jj^2 over its geometric mean

is q = round(x / (1 + p)), p the factor of q^2: entropy-constrained GPTQ. U_jj^2 is what an error is divided by in the
weighted error, so a unit of it costs the same bits in every column.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.gptq import Factor, Rounding, feed_back, inverse_factor
from pgolf.quant.grid import round_to_nearest

GAUSSIAN = math.log2(math.e) / 2


class Problem(NamedTuple):
    """A matrix to be rounded."""

    name: str
    weight: Tensor
    """[m, n], any float type, divided by the column scales where there are any."""
    scale: Tensor
    """[m], float16."""
    clip: int
    inputs: Factor
    """Of its Hessian."""
    outputs: Factor | None
    """Of the sensitivity of its outputs [m, m], where errors are fed back to other rows too."""
    columns: Tensor | None = None
    """Column scales [n], float16."""
    order: Tensor | None = None
    """Rows in the order of the trellis [m]; None: each is rounded by itself."""


def factors(hessians: Mapping[str, Tensor], names: Sequence[str], damp: float, act_order: bool) -> dict[str, Factor]:
    """Factors of the named Hessians, those of one size together. InputError names the first one that has none."""
    found: dict[str, Factor] = {}
    ordered = sorted(set(names), key=lambda name: (len(hessians[name]), name))
    for _, group in groupby(ordered, lambda name: len(hessians[name])):
        members = list(group)
        step = len(members) if hessians[members[0]].is_cuda else 1
        for part in (members[start : start + step] for start in range(0, len(members), step)):
            try:
                perm, upper, dead = inverse_factor(torch.stack([hessians[name] for name in part]), damp, act_order)
            except InputError as error:
                raise InputError(f"{part[0] if len(part) == 1 else 'a matrix'}: {error}") from None
            found |= {name: Factor(perm[i], upper[i], dead[i]) for i, name in enumerate(part)}
    return found


def solve(problems: Sequence[Problem], config: QuantizeConfig) -> Iterator[tuple[Problem, Tensor]]:
    """Each problem with its codes int8 [m, n]; in the given order where they are solved one by one.

    On a CPU a trellis, too, takes hardly longer for many matrices than for one.
    """
    if config.method != "trellis" and not (problems and problems[0].weight.is_cuda):
        for problem in problems:
            yield problem, _solve([problem], config)[0]
        return
    ordered = sorted(problems, key=_kind)
    for _, group in groupby(ordered, _kind):
        part = list(group)
        yield from zip(part, _solve(part, config).unbind(), strict=True)


def _kind(problem: Problem) -> tuple[int, int, bool, bool]:
    m, n = problem.weight.shape
    return m, n, problem.outputs is None, problem.order is None


def _solve(part: Sequence[Problem], config: QuantizeConfig) -> Tensor:
    """Codes [b, m, n] of problems of one shape."""
    W, scale = (torch.stack([problem[i] for problem in part]) for i in (1, 2))  # type: ignore[misc]
    W = W.float()
    clip = torch.tensor([float(problem.clip) for problem in part], device=W.device)[:, None]
    if config.method == "rtn":
        flat = round_to_nearest(W.flatten(0, 1), scale.flatten(), 127).view(W.shape).float()
        return flat.clamp(-clip[..., None], clip[..., None]).to(torch.int8)
    inputs = _stacked([problem.inputs for problem in part])
    orders = [problem.order for problem in part if problem.order is not None]
    if orders:
        from pgolf.quant.trellis import feed_back_trellis

        return feed_back_trellis(W, inputs, scale, torch.stack(orders), config.trellis_states, config.blocksize)
    rounding = _rounding(W, scale, clip, inputs.upper, config.rate)
    outputs = [problem.outputs for problem in part if problem.outputs is not None]
    if not outputs:
        return feed_back(W, inputs, scale, rounding, config.blocksize)
    from pgolf.quant.two_sided import feed_back_both

    return feed_back_both(W, inputs, _stacked(outputs), scale, rounding, config.blocksize, config.row_block)


def _stacked(factors: Sequence[Factor]) -> Factor:
    return Factor(*(torch.stack(list(parts)) for parts in zip(*factors, strict=True)))


def _rounding(W: Tensor, scale: Tensor, clip: Tensor, upper: Tensor, rate: float) -> Rounding:
    """To the nearest code within the clip [b, 1], or with a price on bits (module's formula)."""
    if not rate:
        return lambda steps, _: torch.minimum(torch.maximum(steps.round(), -clip), clip)
    u = upper.diagonal(dim1=-2, dim2=-1).square()
    u = u / u.log().mean(-1, keepdim=True).exp()
    variance = (W / scale.float()[..., None]).square().mean((-2, -1)) + 1 / 12
    p = rate * GAUSSIAN * u / variance[:, None]
    return lambda steps, j: torch.minimum(torch.maximum((steps / (1 + p[:, j, None])).round(), -clip), clip)
