"""Predicted size: for a Gaussian row and step k sigma / c the codes cost 0.5 log2(2 pi e) - log2(k / c) bits each.

The asymptotic formula is about 0.01 bit low at the steps in use (PR 1855: predicted 3.522 bits per
weight, measured 3.531 with everything).
"""

import math

from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.lqer import A_BITS, ASYMMETRIC, B_BITS, factor_shapes
from pgolf.quant.policy import Rule, Shapes, resolve

GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)


def bits_per_code(grid: GridConfig) -> float:
    """Entropy of Gaussian codes on the grid, bits, between 0 and the code width."""
    return min(max(GAUSSIAN_BITS - math.log2(grid.k_sigma / grid.clip), 0.0), float(grid.bits))


def predicted_bytes(shapes: Shapes, config: QuantizeConfig) -> int:
    """Predicted bytes of the compressed weights: codes, two bytes per scale and per small value, one per gate weight.

    Which matrices will be corrected is not known before; the largest ones are assumed.
    """
    plan = resolve(shapes, config)
    sizes = [correction_bytes(shapes[name], config.lqer) for name, rule in plan.items() if rule.grid]
    corrections = sum(sorted(sizes, reverse=True)[: config.lqer.top_k])
    return math.ceil(corrections + sum(_tensor_bytes(shapes[name], rule) for name, rule in plan.items()))


def correction_bytes(shape: tuple[int, ...], config: LqerConfig) -> float:
    """Bytes of a low-rank correction at the width of its codes: an upper bound (twice the entropy in PR 1855)."""
    total = 0.0
    for suffix, (dtype, size) in factor_shapes(shape, config).items():
        code_bits = {ASYMMETRIC[0]: A_BITS, ASYMMETRIC[2]: B_BITS}.get(suffix, config.factor_bits)
        total += math.prod(size) * (code_bits if dtype == "int8" else 16) / 8
    return total


def _tensor_bytes(shape: tuple[int, ...], rule: Rule) -> float:
    numel = math.prod(shape)
    if rule.grid:
        return numel * bits_per_code(rule.grid) / 8 + 2 * shape[0]
    return numel + 2 * shape[0] if rule.int8_rows else 2 * numel
