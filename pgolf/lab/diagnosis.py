"""What a scheme did to each matrix: size, error, its share of the loss, its outliers.

The share of a matrix is how much of the loss comes back when it alone is put back to full precision,

    share = (L(quantized) - L(quantized, but this one)) / (L(quantized) - L(full precision)),

measured on validation text, for a person to read: nothing here chooses anything. Shares need not add up to 1.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.evaluate.config import EvaluateConfig
from pgolf.lab.workbench import Workbench, codes_of
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import TensorReport, quantize_model
from pgolf.quant.state import restore


class Outliers(NamedTuple):
    """The tails of a matrix."""

    largest: float
    """max |w| / std(row)."""
    kurtosis: float
    """Of the weights divided by their row's standard deviation; 3 for a Gaussian."""
    clipped: int
    """Weights that the largest code of the matrix does not reach by more than half a step."""
    zero_rows: int
    """Rows whose codes are all 0."""


class Diagnosis(NamedTuple):
    """One matrix under one scheme."""

    report: TensorReport
    outliers: Outliers
    share: float | None
    """Of the rise of the loss; None where it was not measured."""

    def flat(self) -> dict[str, Any]:
        """All numbers by name."""
        return {**self.report._asdict(), **self.outliers._asdict(), "share": self.share}


class Findings(NamedTuple):
    """A scheme as a whole."""

    matrices: list[Diagnosis]
    codes: dict[str, Tensor]
    """Codes by matrix."""
    rise: float | None
    """Nats per token between full precision and quantized; None where it was not measured."""


def diagnose(
    bench: Workbench,
    scheme: QuantizeConfig,
    windows: EvaluateConfig | None,
    report: Callable[[str], None] = lambda _: None,
) -> Findings:
    """Quantize by `scheme` and look at every matrix; shares are measured in `windows`, a pass over them per matrix.

    The neurons stay in the order of the checkpoint, which changes no number here but rounding.
    """
    checkpoint, plain = bench.checkpoint, replace(scheme, canonical=False)
    sources = matrix_inputs(checkpoint.config)
    done = quantize_model(
        checkpoint.state, bench.hessians, sources, plain, lambda each: report(each.name), bench.device
    )
    codes = codes_of(done.tensors)
    state, shares, rise = restore(done.tensors), dict[str, float](), None
    if windows is not None:
        before, after = bench.score(checkpoint.state, windows).loss, bench.score(state, windows).loss
        rise = after - before
        for index, each in enumerate(done.reports):
            report(f"without {each.name} ({index + 1} of {len(done.reports)})")
            back = bench.score({**state, each.name: checkpoint.state[each.name].float()}, windows).loss
            shares[each.name] = (after - back) / rise
    matrices = [
        Diagnosis(
            each,
            outliers(checkpoint.state[each.name], codes[each.name], done.tensors[f"{each.name}.scale"]),
            shares.get(each.name),
        )
        for each in done.reports
    ]
    return Findings(matrices, codes, rise)


def outliers(weight: Tensor, codes: Tensor, scale: Tensor) -> Outliers:
    """Tails of W [m, n], with the codes [m, n] and scales [m] that it got."""
    W = weight.float()
    ratio = W / W.std(dim=1, keepdim=True).clamp_min(1e-12)
    beyond = W.abs() > (codes.int().abs().max() + 0.5) * scale.float()[:, None]
    return Outliers(
        float(ratio.abs().max()),
        float(ratio.double().pow(4).mean() / ratio.double().square().mean().square()),
        int(beyond.sum()),
        int((codes == 0).all(dim=1).sum()),
    )


def by_role(codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How often each code -127..127 occurs, int64 [255], by the matrix's role in the block."""
    counts: dict[str, Tensor] = {}
    for name, code in codes.items():
        role = re.sub(r"^blocks\.\d+\.", "", name).removesuffix(".weight")
        found = torch.bincount(code.flatten().int() + 127, minlength=255)
        counts[role] = counts[role] + found if role in counts else found
    return counts
