"""Which tensor gets which treatment: one table, first match wins, every tensor exactly once."""

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig, TensorConfig


class Rule(NamedTuple):
    """Treatment of one tensor."""

    tensor_class: str
    """`embed`, `mlp`, `attn`: codes on `grid`; `gate`, `table`: int8 rows; `small`: float16."""
    grid: GridConfig | None
    """None for tensors without GPTQ."""

    @property
    def int8_rows(self) -> bool:
        """Rounded to nearest in 8 bits, one scale per row."""
        return self.tensor_class in ("gate", "table")


def grouped(rule: Rule, config: QuantizeConfig) -> bool:
    """Whether a matrix is ternary, with scales by group (`pgolf.quant.ternary`)."""
    return config.method == "ternary" and rule.grid is not None and rule.grid.bits == 2


def trellised(rule: Rule, config: QuantizeConfig) -> bool:
    """Whether a matrix has the levels of a trellis (`pgolf.quant.trellis`): all have but the embedding."""
    return config.method == "trellis" and rule.grid is not None and rule.tensor_class != "embed"


def is_power(rows: int) -> bool:
    """Whether a Hadamard matrix mixes so many rows (`pgolf.quant.rotate`): a power of two."""
    return rows > 1 and rows & (rows - 1) == 0


Shapes = Mapping[str, tuple[int, ...]]
GATE_NUMEL = range(32, 8192 + 1)
"""Sizes of a gate that `gate_int8` applies to: sparse 8 x 12, dense 8 x 512 (PR 1787, PR 1855)."""
TABLE = re.compile(r"^(bigram|trigram|ve_shared)\.(embed|proj)\.weight$")
"""Embeddings of hashed n-grams and of values: a lookup has no input covariance (PR 401, 549, 635: int8 rows)."""


def table(config: QuantizeConfig) -> Iterable[tuple[str, re.Pattern[str], GridConfig]]:
    """Class, name pattern and grid of the matrices, in the order of matching."""
    return (
        ("embed", re.compile(r"^tok_emb\.weight$"), config.embed),
        ("mlp", re.compile(r"\.mlp\.[\w.]+\.weight$"), config.mlp),
        ("attn", re.compile(r"\.attn\.\w+\.weight$"), config.attn),
    )


def resolve(shapes: Shapes, config: QuantizeConfig) -> dict[str, Rule]:
    """The rule of every tensor: gates first, then small tensors, then the classes of matrices with their exceptions.

    Raises InputError when `small_numel` leaves a tensor to quantize that no class covers, and for an exception that
    names no matrix.
    """
    plan = {}
    for name, shape in shapes.items():
        numel = 1
        for size in shape:
            numel *= size
        if config.gate_int8 and len(shape) == 2 and name.endswith(".attn_gate_w") and numel in GATE_NUMEL:
            plan[name] = Rule("gate", None)
            continue
        if len(shape) != 2 or numel <= config.small_numel:
            plan[name] = Rule("small", None)
            continue
        if TABLE.match(name):
            plan[name] = Rule("table", None)
            continue
        matches = [Rule(label, grid) for label, pattern, grid in table(config) if pattern.search(name)]
        if not matches:
            raise InputError(
                f"`quantize.small_numel` is {config.small_numel}, and no tensor class covers {name} with its {numel} "
                f"elements: set it to at least {numel}"
            )
        plan[name] = matches[0]
    return _with_exceptions(plan, config.tensors)


def _with_exceptions(plan: dict[str, Rule], exceptions: Iterable[TensorConfig]) -> dict[str, Rule]:
    for exception in exceptions:
        named = [name for name, rule in plan.items() if rule.grid and fnmatchcase(name, exception.name)]
        if not named:
            raise InputError(f"`quantize.tensors` names {exception.name}, which no quantized matrix matches")
        for name in named:
            grid = plan[name].grid
            assert grid
            plan[name] = plan[name]._replace(grid=exception.on(grid))
    return plan
