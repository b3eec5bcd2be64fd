"""Fewer distinct codes after rounding: cheaper to store, and further from the weights.

* Selective pruning (PR 609, 1019): of all codes +-1 on 6-bit grids, those in rows of the smallest scales become 0.
* Value dedup (PR 1520): q becomes `floor(q / 2) 2`, which lowers every odd code by one step: a bias of -s / 2 on
  average. `even` takes the even code nearer to 0 instead: no bias, the same entropy.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pgolf.quant.solve import Problem

Dedup = Literal["none", "floor", "even"]


def coarsen(solved: Iterable[tuple[Problem, Tensor]], kind: Dedup, ones: int) -> Iterator[tuple[Problem, Tensor]]:
    """The problems with the codes that are left after pruning `ones` codes, then dedup."""
    known = {problem.name: (problem, codes) for problem, codes in solved}
    narrow = [name for name, (problem, _) in known.items() if problem.clip == 31]
    pruned = prune_ones(
        {name: known[name][1] for name in narrow}, {name: known[name][0].scale for name in narrow}, ones
    )
    for name, (problem, codes) in known.items():
        yield problem, dedup(pruned.get(name, codes), kind)


def dedup(codes: Tensor, kind: Dedup) -> Tensor:
    """Codes int8 of which only even ones are left, but for `none`."""
    if kind == "none":
        return codes
    return codes - codes % 2 if kind == "floor" else codes - codes.sign() * (codes % 2)


def prune_ones(codes: Mapping[str, Tensor], scales: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The codes int8 [m, n] of all matrices with `count` of those that are +-1 set to 0, smallest row scale first.

    Of equal scales the first; all of them where there are fewer.
    """
    names: Sequence[str] = list(codes)
    if not names:
        return {}
    ones = {name: (codes[name].abs() == 1).flatten().nonzero()[:, 0] for name in names}
    sizes = torch.cat([scales[name].float()[ones[name] // codes[name].size(1)] for name in names])
    chosen = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    chosen[torch.argsort(sizes, stable=True)[:count]] = True
    pruned = {}
    for name, part in zip(names, torch.split(chosen, [len(ones[name]) for name in names]), strict=True):
        pruned[name] = codes[name].clone()
        pruned[name].view(-1)[ones[name][part]] = 0
    return pruned
