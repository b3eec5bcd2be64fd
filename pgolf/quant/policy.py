"""Which tensor gets which treatment: one table, first match wins, every tensor exactly once."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig


class Rule(NamedTuple):
    """Treatment of one tensor; `grid` is None for tensors kept as float16."""

    tensor_class: str
    grid: GridConfig | None


Shapes = Mapping[str, tuple[int, ...]]


def table(config: QuantizeConfig) -> Iterable[tuple[str, re.Pattern[str], GridConfig]]:
    """Class, name pattern and grid of the matrices, in the order of matching."""
    return (
        ("embed", re.compile(r"^tok_emb\.weight$"), config.embed),
        ("mlp", re.compile(r"\.mlp\.\w+\.weight$"), config.mlp),
        ("attn", re.compile(r"\.attn\.\w+\.weight$"), config.attn),
    )


def resolve(shapes: Shapes, config: QuantizeConfig) -> dict[str, Rule]:
    """The rule of every tensor. InputError when `small_numel` leaves a tensor to quantize that no class covers."""
    plan = {}
    for name, shape in shapes.items():
        numel = 1
        for size in shape:
            numel *= size
        if len(shape) != 2 or numel <= config.small_numel:
            plan[name] = Rule("small", None)
            continue
        matches = [Rule(label, grid) for label, pattern, grid in table(config) if pattern.search(name)]
        if not matches:
            raise InputError(
                f"`quantize.small_numel` is {config.small_numel}, and no tensor class covers {name} with its {numel} "
                f"elements: set it to at least {numel}"
            )
        plan[name] = matches[0]
    return plan
