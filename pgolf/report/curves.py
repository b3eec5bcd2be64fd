"""Series of a run as CSV with stable columns, so that `dvc plots diff` can lay two runs over each other."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgolf.artifacts import write_bytes


def write_curve(path: Path, series: Mapping[str, Sequence[float]]) -> None:
    """One column per series, one line per entry; all series have the same length."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(series)
    writer.writerows(zip(*series.values(), strict=True))
    write_bytes(path, text.getvalue().encode())


def first_above(axis: Sequence[float], threshold: float, values: Sequence[float]) -> float:
    """The value at the first entry whose `axis` exceeds `threshold`, else the last one."""
    return next((value for at, value in zip(axis, values, strict=True) if at > threshold), values[-1])
