"""From a checkpoint and what calibration found to the matrices to be rounded: scales, clips and factors of each."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.gptq import Factor, inverse_factor
from pgolf.quant.grid import geometric, sdclip_scale
from pgolf.quant.hessian import LOOKUP, OUTPUT
from pgolf.quant.policy import Rule, trellised
from pgolf.quant.solve import Problem, factors

if TYPE_CHECKING:
    from pgolf.quant.steps import Weighed


class Inputs:
    """Weights, Hessians and sensitivities of the matrices to quantize, on one device, checked."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        hessians: Mapping[str, Tensor],
        sources: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self.state, self.hessians, self.sources, self.device = state, hessians, sources, device

    def of(self, names: Iterable[str]) -> "Inputs":
        """Only these matrices, on the device. InputError, naming the matrix, for what is missing or not finite."""
        state, hessians = {}, {}
        for name in names:
            weight, source = self.state[name], self.sources.get(name, "")
            if source not in self.hessians:
                raise InputError(f"{name}: no Hessian was collected for it: run `pgolf calibrate` again")
            if not torch.isfinite(weight).all():
                raise InputError(
                    f"{name}: the weights hold NaN or infinity: the training run diverged, train again with a lower "
                    "rate"
                )
            state[name] = weight.to(self.device)
            for key in (source, name + OUTPUT, name + LOOKUP):
                if key in self.hessians and key not in hessians:
                    hessians[key] = self.hessians[key].to(self.device)
                    if not torch.isfinite(hessians[key]).all():
                        raise InputError(
                            f"{name}: the Hessian holds NaN or infinity: calibrate again from a model that did not "
                            "diverge"
                        )
        return Inputs(state, hessians, self.sources, self.device)

    def hessian(self, name: str) -> Tensor:
        """H [n, n] of a matrix."""
        return self.hessians[self.sources[name]]

    def sensitivity(self, name: str) -> Tensor:
        """G [m, m] or [m] of a matrix."""
        if name + OUTPUT not in self.hessians:
            raise InputError(
                f"{name}: its sensitivity was not collected, which `quantize.steps: loss` and `row_block` need: set "
                "`calibrate.sensitivity` and calibrate again"
            )
        return self.hessians[name + OUTPUT]

    def nats(self, name: str, E: Tensor) -> float | None:
        """1/2 tr(G E H E^T) + 1/2 sum_i B_i |E_i|^2 of an error E [m, n]; None where G is not known."""
        G = self.hessians.get(name + OUTPUT)
        if G is None:
            return None
        E = E.double()
        EH, G = E @ self.hessian(name).double(), G.double()
        rise = (G @ E * EH).sum() if G.ndim == 2 else (G * (E * EH).sum(1)).sum()
        if (B := self.hessians.get(name + LOOKUP)) is not None:
            rise = rise + (B.double() * E.square().sum(1)).sum()
        return float(rise) / 2


RowOrder = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Row scales [m] of matrices -> the order in which their rows will be stored."""


def problems(
    inputs: Inputs, plan: Mapping[str, Rule], config: QuantizeConfig, row_order: RowOrder | None = None
) -> list[Problem]:
    """What is to be solved for each matrix of `inputs`; `row_order` where rows are not stored as they are."""
    sources = [inputs.sources[name] for name in inputs.state]
    found = factors(inputs.hessians, sources, config.damp, config.act_order)
    if config.rotate:
        from pgolf.quant.rotate import rotated

        inputs = Inputs(*rotated(inputs.state, inputs.hessians), inputs.sources, inputs.device)
    columns: dict[str, Tensor] = {}
    if config.columns != "none":
        from pgolf.quant.columns import column_scales, divided, rescaled

        columns = {
            name: column_scales(inputs.hessian(name), found[inputs.sources[name]], config) for name in inputs.state
        }
        inputs = Inputs(divided(inputs.state, columns), inputs.hessians, inputs.sources, inputs.device)
    scales = _scales(inputs, plan, found, config)
    if config.method == "trellis":
        from pgolf.quant.trellis import halved

        levels = [name for name in scales if trellised(plan[name], config)]
        scales |= {name: halved(scales[name], inputs.state[name]) for name in levels}
    if config.scale_steps is not None:
        scales = {name: geometric(scale, config.scale_steps) for name, scale in scales.items()}
    orders: dict[str, Tensor] = {}
    if config.method == "trellis":
        from pgolf.quant.trellis import row_orders

        orders = row_orders({name: scales[name] for name in levels}, row_order(scales) if row_order else {})
    made = []
    for name, weight in inputs.state.items():
        grid = plan[name].grid
        assert grid
        scale = scales[name]
        if not torch.isfinite(scale.float()).all():
            raise InputError(
                f"{name}: the step of a row is beyond float16: lower `k_sigma`, or train again with a lower rate"
            )
        clip = 127 if config.steps == "loss" else grid.clip
        outputs = _outputs(inputs, name, config)
        factor, c = found[inputs.sources[name]], columns.get(name)
        factor = factor if c is None else rescaled(factor, c)
        made.append(Problem(name, weight, scale, clip, factor, outputs, c, orders.get(name)))
    return made


def _outputs(inputs: Inputs, name: str, config: QuantizeConfig) -> Factor | None:
    """The factor of G where errors are fed back to other rows; a diagonal G has nothing to feed back."""
    if not config.row_block or (G := inputs.sensitivity(name)).ndim != 2:
        return None
    return inverse_factor(G, config.damp_rows)


def _scales(
    inputs: Inputs, plan: Mapping[str, Rule], found: Mapping[str, Factor], config: QuantizeConfig
) -> dict[str, Tensor]:
    """Row scales [m], float16, of every matrix."""
    grids = {name: rule.grid for name, rule in plan.items() if rule.grid}
    weights = inputs.state.items()
    if config.steps == "deviation" and not config.hessian_aware:
        return {name: sdclip_scale(weight, grids[name].k_sigma, grids[name].clip) for name, weight in weights}
    from pgolf.quant import steps

    if config.steps == "loss":
        return steps.loss_scales(
            {name: _weighed(inputs, name, found[inputs.sources[name]], grids[name]) for name in inputs.state}
        )
    if config.steps == "deviation":
        return {name: _hessian_aware(inputs, name, grids[name], config) for name in inputs.state}
    if config.steps == "extreme":
        return {name: steps.extreme_scale(weight, grids[name].clip, config.least_max) for name, weight in weights}
    per_row = config.steps == "percentile_row"
    return {
        name: steps.percentile_scale(weight, grids[name].clip, config.least_max, per_row) for name, weight in weights
    }


def _weighed(inputs: Inputs, name: str, factor: Factor, grid: GridConfig) -> "Weighed":
    from pgolf.quant.steps import Weighed, importance

    A = importance(inputs.sensitivity(name), factor.upper, inputs.hessians.get(name + LOOKUP))
    return Weighed(inputs.state[name], A, grid.k_sigma / grid.clip)


def _hessian_aware(inputs: Inputs, name: str, grid: GridConfig, config: QuantizeConfig) -> Tensor:
    from pgolf.quant.steps import hessian_aware

    weight, diagonal = inputs.state[name], inputs.hessian(name).diagonal()
    diagonal = torch.where(diagonal == 0, 1.0, diagonal)
    diagonal = diagonal + config.damp * diagonal.mean()
    return hessian_aware(sdclip_scale(weight, grid.k_sigma, grid.clip), weight, diagonal, config.hessian_aware)
