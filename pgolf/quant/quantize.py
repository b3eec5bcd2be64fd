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
from pgolf.quant.gptq import weighted_error
from pgolf.quant.grid import absmax_scale, round_to_nearest, shortened
from pgolf.quant.lqer import correction, largest_errors, lqer_factors, quantize_factors
from pgolf.quant.policy import Rule, grouped, is_power, resolve, trellised
from pgolf.quant.problems import Inputs, RowOrder, problems
from pgolf.quant.solve import solve
from pgolf.quant.state import restore


class TensorReport(NamedTuple):
    """What quantization did to one matrix."""

    name: str
    tensor_class: str
    numel: int
    bits: int
    entropy: float
    """Order-0 entropy of the codes, bits per weight; with a trellis that of levels of known parity."""
    relative_error: float
    """tr(E H E^T) / tr(W H W^T), E what is missing from the restored matrix."""
    rounding_error: float
    """The same without the low-rank correction."""
    nats: float | None = None
    """Predicted rise of the loss by the rounding, nats per token, where the outputs' sensitivity is known."""
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


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Inside, products of float32 matrices on a GPU are not rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@exact_products()
def quantize_model(
    state: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sources: Mapping[str, str],
    config: QuantizeConfig,
    report: Callable[[TensorReport], None] = lambda _: None,
    device: torch.device | None = None,
    row_order: RowOrder | None = None,
) -> Quantized:
    """Quantize every tensor of `state`, on `device` (null: a GPU where there is one); the result is on the CPU.

    `sources` names the Hessian of each matrix; `hessians` also holds the sensitivities of the outputs that some schemes
    need (`pgolf.quant.sensitivity`). `report` is called for every matrix, and once more for those that get a
    correction. `row_order` matters to a trellis alone. Raises InputError, naming the tensor, when a Hessian is missing
    or the numbers are not finite.
    """
    plan = resolve({name: tuple(tensor.shape) for name, tensor in state.items()}, config)
    tensors: dict[str, Tensor] = {}
    for name, weight in state.items():
        if plan[name].grid is None:
            with _naming(name):
                tensors |= _store_small(name, weight.cpu(), plan[name], config)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = Inputs(state, hessians, sources, device).of({name: rule for name, rule in plan.items() if rule.grid})
    reports: dict[str, TensorReport] = {}
    norms: dict[str, float] = {}
    for name, stored in _rounded(moved, plan, config, row_order):
        W, H = moved.state[name].float(), moved.hessian(name)
        E = W - restore(stored)[name]
        tensors |= {key: value.cpu() for key, value in stored.items()}
        norms[name] = _size(E, H, config)
        reports[name] = _report(name, plan[name], W, stored[f"{name}.q"], E, moved, config)
        report(reports[name])
    norms = {name: norms[name] for name in state if name in norms}
    for name in largest_errors(norms, config.lqer.top_k):
        with _naming(name):
            W, keys = moved.state[name].float(), [f"{name}{suffix}" for suffix in (".q", ".scale", ".cols", ".rot")]
            E = W - restore({key: tensors[key].to(device) for key in keys if key in tensors})[name]
            stored, E = _correct(name, E, config)
            tensors |= {key: value.cpu() for key, value in stored.items()}
            reports[name] = _corrected(reports[name], W, stored, E, moved.hessian(name))
        report(reports[name])
    return Quantized(tensors, [reports[name] for name in norms])


def _rounded(
    inputs: Inputs, plan: Mapping[str, Rule], config: QuantizeConfig, row_order: RowOrder | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every matrix with its stored tensors."""
    ternary = [name for name in inputs.state if grouped(plan[name], config)]
    for name in ternary:
        from pgolf.quant.ternary import packed
        from pgolf.quant.ternary import ternary as groups

        with _naming(name):
            codes, scale = groups(inputs.state[name])
        yield name, {f"{name}.q": packed(codes), f"{name}.scale": scale}
    rest = inputs.of([name for name in inputs.state if name not in ternary])
    solved = solve(problems(rest, plan, config, row_order), config)
    if config.dedup != "none" or config.prune_ones:
        from pgolf.quant.coarsen import coarsen

        solved = coarsen(solved, config.dedup, config.prune_ones)
    for problem, codes in solved:
        stored = {f"{problem.name}.q": codes, f"{problem.name}.scale": problem.scale}
        if problem.columns is not None:
            stored[f"{problem.name}.cols"] = problem.columns
        if config.rotate and is_power(len(codes)):
            stored[f"{problem.name}.rot"] = torch.empty(0, dtype=torch.float16)
        yield problem.name, stored


def _size(E: Tensor, H: Tensor, config: QuantizeConfig) -> float:
    """What decides which matrices get a correction."""
    if config.lqer.by == "weighted":
        return weighted_error(E, H)
    return float(torch.linalg.vector_norm(E, dtype=torch.float64))


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


def _correct(name: str, E: Tensor, config: QuantizeConfig) -> tuple[dict[str, Tensor], Tensor]:
    """The stored low-rank factors of E [m, n], and the error that remains."""
    factors = quantize_factors(*lqer_factors(E, config.lqer.rank), config.lqer)
    stored = {f"{name}{suffix}": tensor for suffix, tensor in factors.items()}
    low_rank = correction(stored, name)
    assert low_rank is not None
    return stored, E - low_rank


def _report(
    name: str, rule: Rule, weight: Tensor, codes: Tensor, E: Tensor, inputs: Inputs, config: QuantizeConfig
) -> TensorReport:
    assert rule.grid
    error, bits, known = _relative(E, weight, inputs.hessian(name)), rule.grid.bits, 0.0
    if grouped(rule, config):
        from pgolf.quant.ternary import unpacked

        codes = unpacked(codes, len(weight))
    if trellised(rule, config):
        bits, known = 8, entropy(codes & 1)
    left = entropy(codes) - known
    return TensorReport(name, rule.tensor_class, weight.numel(), bits, left, error, error, inputs.nats(name, E))


def _corrected(
    before: TensorReport, weight: Tensor, stored: Mapping[str, Tensor], E: Tensor, H: Tensor
) -> TensorReport:
    bits = sum(t.numel() * (entropy(t) if t.dtype == torch.int8 else 16) for t in stored.values())
    return before._replace(relative_error=_relative(E, weight, H), lqer_bytes=math.ceil(bits / 8))


def _relative(E: Tensor, weight: Tensor, H: Tensor) -> float:
    return weighted_error(E, H) / max(weighted_error(weight, H), 1e-30)
