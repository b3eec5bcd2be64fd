"""Numbers about a quantization, per class of tensors."""

from collections.abc import Sequence

from pgolf.quant.quantize import TensorReport


def class_rows(reports: Sequence[TensorReport], small: int) -> list[tuple[str, int, int, str, str]]:
    """Class, weights, bits, entropy (bits per weight) and mean relative error of each class, for a table.

    `small` weights are kept as float16: a forgotten `small_numel` shows here.
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
    return [*rows, ("small", small, 16, "-", "-")]


def quantize_metrics(reports: Sequence[TensorReport]) -> dict[str, float]:
    """Weighted means over all weights, and per class."""
    metrics = {
        "bits_per_weight_entropy": _mean(reports, "entropy"),
        "weighted_error": _mean(reports, "relative_error"),
    }
    for label, members in _classes(reports).items():
        metrics[f"bits_per_weight_entropy_{label}"] = _mean(members, "entropy")
        metrics[f"weighted_error_{label}"] = _mean(members, "relative_error")
    return metrics


def _classes(reports: Sequence[TensorReport]) -> dict[str, list[TensorReport]]:
    classes: dict[str, list[TensorReport]] = {}
    for report in reports:
        classes.setdefault(report.tensor_class, []).append(report)
    return classes


def _mean(reports: Sequence[TensorReport], field: str) -> float:
    total = sum(report.numel for report in reports)
    return float(sum(getattr(report, field) * report.numel for report in reports) / max(total, 1))
