"""Numbers about a quantization, per class of tensors."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pgolf.quant.policy import TABLE
from pgolf.quant.quantize import TensorReport
from pgolf.quant.run import Run
from pgolf.quant.state import split_key


def kept_weights(stored: Mapping[str, Tensor]) -> dict[str, int]:
    """How many weights are not codes on a grid: `gate` and `table` ones (int8 rows) and `small` ones (float16)."""
    counts = {"gate": 0, "table": 0, "small": 0}
    for key, tensor in stored.items():
        name, suffix = split_key(key)
        if suffix in (".gq", ""):
            counts["small" if not suffix else "table" if TABLE.match(name) else "gate"] += tensor.numel()
    return counts


def class_rows(reports: Sequence[TensorReport], kept: Mapping[str, int]) -> list[tuple[str, int, int, str, str]]:
    """Class, weights, bits, entropy (bits per weight) and mean relative error of each class, for a table.

    `kept` counts the weights without a grid: a forgotten `small_numel` shows here.
    """
    rows: list[tuple[str, int, int, str, str]] = []
    for label, members in _classes(reports).items():
        count = sum(report.numel for report in members)
        rows.append(
            (
                label,
                count,
                members[0].bits,
                f"{_mean(members, 'entropy'):.3f}",
                f"{_mean(members, 'relative_error'):.2e}",
            )
        )
    return [*rows, *((label, count, 16 if label == "small" else 8, "-", "-") for label, count in kept.items() if count)]


def lqer_rows(reports: Sequence[TensorReport]) -> list[tuple[str, int, str, str]]:
    """Name, bytes, and relative error before and after, of each matrix with a low-rank correction, for a table."""
    return [
        (report.name, report.lqer_bytes, f"{report.rounding_error:.2e}", f"{report.relative_error:.2e}")
        for report in reports
        if report.lqer_bytes
    ]


def quantize_metrics(reports: Sequence[TensorReport]) -> dict[str, float]:
    """Weighted means over all weights, and per class; `rounding_error` is without the low-rank corrections."""
    nats = [report.nats for report in reports if report.nats is not None]
    metrics = {
        "bits_per_weight_entropy": _mean(reports, "entropy"),
        "weighted_error": _mean(reports, "relative_error"),
        "rounding_error": _mean(reports, "rounding_error"),
        "lqer_tensors": sum(report.lqer_bytes > 0 for report in reports),
        "lqer_bytes": sum(report.lqer_bytes for report in reports),
    }
    if nats:  # predicted by the sensitivities, without the corrections
        metrics["predicted_nats"] = sum(nats)
    for label, members in _classes(reports).items():
        metrics[f"bits_per_weight_entropy_{label}"] = _mean(members, "entropy")
        metrics[f"weighted_error_{label}"] = _mean(members, "relative_error")
    return metrics


def fit_metrics(run: Run) -> dict[str, float]:
    """What a fit to the cap chose; empty without one."""
    if not run.trials:
        return {}
    common = [entry.k_times for entry in run.config.tensors if entry.name == "*"][-1]
    return {"fit_k_times": common, "fit_bytes_model": run.trials[common], "fit_trials": len(run.trials)}


def _classes(reports: Sequence[TensorReport]) -> dict[str, list[TensorReport]]:
    classes: dict[str, list[TensorReport]] = {}
    for report in reports:
        classes.setdefault(report.tensor_class, []).append(report)
    return classes


def _mean(reports: Sequence[TensorReport], field: str) -> float:
    total = sum(report.numel for report in reports)
    return float(sum(getattr(report, field) * report.numel for report in reports) / max(total, 1))
