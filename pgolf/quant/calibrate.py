"""Calibration: Hessians of the trained model on training rows, or on text that it writes itself.

Where it reads training data, its seconds are training time (PR 1004, issue 677).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from pgolf.data.batches import Batch
from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.model.gpt import GPT
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.hessian import collect_hessians


def calibrate(
    model: GPT, config: CalibrateConfig, shards: Sequence[Path], report: Callable[[int], None] = lambda _: None
) -> dict[str, Tensor]:
    """Hessians by module name, dense causal attention; with `sensitivity`, those of the outputs too, by matrix."""
    model.prepare(config.seq_len)
    batches = _batches(model, config, shards)
    found = collect_hessians(model, batches, config.batches, report)
    if config.sensitivity:
        from pgolf.quant.sensitivity import collect_sensitivities

        found |= collect_sensitivities(model, batches, config.sensitivity, config.rows * config.seq_len)
    return found


def _batches(model: GPT, config: CalibrateConfig, shards: Sequence[Path]) -> Iterator[Batch]:
    """Rows drawn by the shuffled-sequence loader (PR 1394), or by the model (PR 1019)."""
    if config.source == "generated":
        from pgolf.quant.generate import generated_rows

        return generated_rows(model, config.rows, config.seq_len, config.temperature, config.seed)
    return ShuffledRows(shards, config.rows, config.seq_len, seed=config.seed)
