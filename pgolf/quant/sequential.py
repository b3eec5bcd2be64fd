"""Hessians through blocks that are quantized already: each is calibrated on what will really reach it.

    for every block i, then for the rest:  H = X^T X of the inputs behind the quantized blocks 0..i-1,  W^ = GPTQ(W, H)

So Frantar et al. 2022 collect them, to hold one block at a time. It costs a calibration for each block and gained
nothing where it was measured (docs/results.md), so no stage does it: `pgolf sweep quantize --in-turn`.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import Quantized, TensorReport, quantize_model
from pgolf.quant.state import restore

Hessians = Mapping[str, Tensor]


def quantize_in_turn(
    state: Mapping[str, Tensor],
    sources: Mapping[str, str],
    config: QuantizeConfig,
    hessians_of: Callable[[Mapping[str, Tensor]], Hessians],
    device: torch.device | None = None,
) -> Quantized:
    """Quantize block after block; `hessians_of` calibrates a model with the given parameters.

    InputError for what looks at all matrices at once: a fit, a number of corrections, canonical orders.
    """
    for key, on in (
        ("fit.target_bytes", config.fit.target_bytes is not None),
        ("lqer.top_k", config.lqer.top_k > 0),
        ("canonical", config.canonical),
    ):
        if on:
            raise InputError(f"`quantize.{key}` looks at all matrices at once: leave it out to quantize in turn")
    current: dict[str, Tensor] = dict(state)
    tensors: dict[str, Tensor] = {}
    reports: list[TensorReport] = []
    for names in turns(state):
        part = {name: state[name] for name in names}
        done = quantize_model(part, hessians_of(current), sources, config, device=device)
        tensors |= done.tensors
        reports += done.reports
        current |= restore(done.tensors)
    return Quantized(tensors, reports)


def turns(state: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names of every block's parameters, in the order of the blocks, then all others."""
    blocks: dict[int, list[str]] = {}
    others = []
    for name in state:
        part, _, rest = name.partition(".")
        if part == "blocks":
            blocks.setdefault(int(rest.partition(".")[0]), []).append(name)
        else:
            others.append(name)
    yield from (blocks[index] for index in sorted(blocks))
    yield others
