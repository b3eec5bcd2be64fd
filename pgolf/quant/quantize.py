"""Quantize a checkpoint: the policy's grid and GPTQ for every matrix, float16 for the rest."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.gptq import gptq_quantize, weighted_error
from pgolf.quant.grid import dequantize, sdclip_scale
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
    """tr(E H E^T) / tr(W H W^T)."""


class Quantized(NamedTuple):
    """Stored tensors by key (`NAME.q` int8, `NAME.scale` float16, or NAME float16) and a report per matrix."""

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

    Raises InputError, naming the tensor, when a Hessian is missing or the numbers are not finite.
    """
    plan = resolve({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    tensors: dict[str, Tensor] = {}
    reports = []
    for name, weight in state.items():
        try:
            stored, result = _quantize_tensor(name, weight, hessians.get(sources.get(name, "")), plan[name], config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        tensors |= stored
        if result:
            reports.append(result)
            report(result)
    return Quantized(tensors, reports)


def _quantize_tensor(
    name: str, weight: Tensor, H: Tensor | None, rule: Rule, config: QuantizeConfig
) -> tuple[dict[str, Tensor], TensorReport | None]:
    if rule.grid is None:
        if not torch.isfinite(weight.half()).all():
            raise InputError("a value is not finite in float16: the training run diverged, train again")
        return {name: weight.half()}, None
    if H is None:
        raise InputError("no Hessian was collected for it: run `pgolf calibrate` again")
    scale = sdclip_scale(weight, rule.grid.k_sigma, rule.grid.clip)
    codes = gptq_quantize(weight, H, scale, rule.grid.clip, damp=config.damp, blocksize=config.blocksize)
    error = weighted_error(weight.float() - dequantize(codes, scale), H)
    relative = error / max(weighted_error(weight, H), 1e-30)
    result = TensorReport(name, rule.tensor_class, weight.numel(), rule.grid.bits, entropy(codes), relative)
    return {f"{name}.q": codes, f"{name}.scale": scale}, result
