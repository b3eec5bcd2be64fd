"""Calibration: Hessians of the trained model on training rows.

It reads training data, so its seconds are training time (PR 1004, issue 677).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.model.gpt import GPT
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.hessian import collect_hessians


def calibrate(
    model: GPT, config: CalibrateConfig, shards: Sequence[Path], report: Callable[[int], None] = lambda _: None
) -> dict[str, Tensor]:
    """Hessians by module name, from rows drawn by the shuffled-sequence loader (PR 1394), dense causal attention."""
    model.prepare(config.seq_len)
    return collect_hessians(model, ShuffledRows(shards, config.rows, config.seq_len), config.batches, report)
