"""Quantize a checkpoint: the policy's grid and GPTQ for every matrix, int8 rows for gates, float16 for the rest.

Then the matrices whose rounding error W - W^ has the largest Frobenius norm get a low-rank correction.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.gptq import gptq_quantize, weighted_error
from pgolf.quant.grid import absmax_scale, dequantize, geometric, round_to_nearest, sdclip_scale, shortened
from pgolf.quant.lqer import correction, largest_errors, lqer_factors, quantize_factors
from pgolf.quant.policy import Rule, resolve


class TensorReport(NamedTuple):
    """What quantization did to one matrix."""

    name: str
    tensor_class: str
    numel: int
    bits: int
    entropy: float
    """Order-0 entropy of the codes, bits per weight."""
    relative_error: float
    """tr(E H E^T) / tr(W H W^T), E what is missing from the restored matrix."""
    rounding_error: float
    """The same without the low-rank correction."""
    lqer_bytes: int = 0
    """Bytes of the correction: order-0 entropy of its codes, and its scales; 0 where there is none."""


class Quantized(NamedTuple):
    """Stored tensors by key (see `pgolf.quant.state`) and a report per matrix."""

    tensors: dict[str, Tensor]
    reports: list[TensorReport]


def entropy(codes: Tensor) -> float:
    """Order-0 entropy in bits per code."""
    p = torch.bincount(codes.flatten().int() + 128, minlength=256).double() / codes.numel()
    return float(-(p[p > 0] * p[p > 0].log2()).sum())


def quantize_model(
    state: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sources: Mapping[str, str],
    config: QuantizeConfig,
    report: Callable[[TensorReport], None] = lambda _: None,
) -> Quantized:
    """Quantize every tensor of `state`; `sources` names the Hessian of each matrix.

    `report` is called for every matrix, and once more for those that get a correction. Raises InputError, naming the
    tensor, when a Hessian is missing or the numbers are not finite.
    """
    plan = resolve({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    tensors: dict[str, Tensor] = {}
    reports: dict[str, TensorReport] = {}
    norms: dict[str, float] = {}
    for name, weight in state.items():
        with _naming(name):
            if plan[name].grid is None:
                tensors |= _store_small(name, weight, plan[name], config)
                continue
            H = hessians.get(sources.get(name, ""))
            stored, E = _quantize_matrix(name, weight, H, plan[name], config)
            tensors |= stored
            norms[name] = float(torch.linalg.vector_norm(E, dtype=torch.float64))
            reports[name] = _report(name, plan[name], weight, stored[f"{name}.q"], E, hessians[sources[name]])
        report(reports[name])
    for name in largest_errors(norms, config.lqer.top_k):
        with _naming(name):
            E = state[name].float() - dequantize(tensors[f"{name}.q"], tensors[f"{name}.scale"])
            stored, E = _correct(name, E, config)
            tensors |= stored
            reports[name] = _corrected(reports[name], state[name], stored, E, hessians[sources[name]])
        report(reports[name])
    return Quantized(tensors, list(reports.values()))


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the tensor's name before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _store_small(name: str, weight: Tensor, rule: Rule, config: QuantizeConfig) -> dict[str, Tensor]:
    half = shortened(weight.half(), config.small_bits)
    if not torch.isfinite(half).all():
        raise InputError("a value is not finite in float16: the training run diverged, train again")
    if not rule.int8_rows:
        return {name: half}
    scale = absmax_scale(weight, 127)
    return {f"{name}.gq": round_to_nearest(weight.float(), scale, 127), f"{name}.gs": scale}


def _quantize_matrix(
    name: str, weight: Tensor, H: Tensor | None, rule: Rule, config: QuantizeConfig
) -> tuple[dict[str, Tensor], Tensor]:
    """Codes and scales, and the error E = W - W^ [m, n], W the original weights."""
    assert rule.grid
    if H is None:
        raise InputError("no Hessian was collected for it: run `pgolf calibrate` again")
    scale = sdclip_scale(weight, rule.grid.k_sigma, rule.grid.clip)
    if config.scale_steps is not None:
        scale = geometric(scale, config.scale_steps)
    codes = gptq_quantize(weight, H, scale, rule.grid.clip, damp=config.damp, blocksize=config.blocksize)
    return {f"{name}.q": codes, f"{name}.scale": scale}, weight.float() - dequantize(codes, scale)


def _correct(name: str, E: Tensor, config: QuantizeConfig) -> tuple[dict[str, Tensor], Tensor]:
    """The stored low-rank factors of E [m, n], and the error that remains."""
    factors = quantize_factors(*lqer_factors(E, config.lqer.rank), config.lqer)
    stored = {f"{name}{suffix}": tensor for suffix, tensor in factors.items()}
    low_rank = correction(stored, name)
    assert low_rank is not None
    return stored, E - low_rank


def _report(name: str, rule: Rule, weight: Tensor, codes: Tensor, E: Tensor, H: Tensor) -> TensorReport:
    assert rule.grid
    error = _relative(E, weight, H)
    return TensorReport(name, rule.tensor_class, weight.numel(), rule.grid.bits, entropy(codes), error, error)


def _corrected(
    before: TensorReport, weight: Tensor, stored: Mapping[str, Tensor], E: Tensor, H: Tensor
) -> TensorReport:
    bits = sum(t.numel() * (entropy(t) if t.dtype == torch.int8 else 16) for t in stored.values())
    return before._replace(relative_error=_relative(E, weight, H), lqer_bytes=math.ceil(bits / 8))


def _relative(E: Tensor, weight: Tensor, H: Tensor) -> float:
    return weighted_error(E, H) / max(weighted_error(weight, H), 1e-30)
