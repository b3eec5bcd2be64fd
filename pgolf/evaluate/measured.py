"""What an evaluation measured, as metrics and as a table of documents."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf.config import to_dict
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import find_documents
from pgolf.evaluate.run import Evaluation, References
from pgolf.evaluate.score import BOS, subset_scores

FULL_TARGETS, FULL_GPUS = 47_851_520, 8
"""The challenge's validation set in CaseOps tokens, and the GPUs that have 600 s for it."""


Column = list[Any]


def document_table(
    tokens: NDArray[np.uint16], token_bytes: NDArray[np.integer], result: Evaluation, compared: References
) -> dict[str, Column]:
    """Columns with an entry per document of a stream [n]; None where something was not measured.

    `first`: its first target, counted in the stream; `targets`: how many, the BOS of the next document included;
    `bytes`: charged to them; `before`, `after`: their nats, without test-time training and as scored; `seconds`:
    evaluation clock when the last of them was scored.
    """
    start, targets = find_documents(tokens, BOS)

    def total(losses: NDArray[np.float32] | None) -> Column:
        return [None] * len(start) if losses is None else np.add.reduceat(losses.astype(np.float64), start).tolist()

    seconds = [None] * len(start) if result.seconds is None else np.maximum.reduceat(result.seconds, start).tolist()
    return {
        "document": list(range(len(start))),
        "first": start.tolist(),
        "targets": targets.tolist(),
        "bytes": np.add.reduceat(token_bytes[1:].astype(np.int64), start).tolist(),
        "before": total(compared.unadapted_losses),
        "after": total(result.losses),
        "seconds": [None if one is None or math.isnan(one) else one for one in seconds],
    }


def metrics(
    config: EvaluateConfig, result: Evaluation, compared: References, token_bytes: NDArray[np.integer],
    raw_bytes: int | None, seconds: float, gpus: int,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of an evaluation; `seconds`: evaluation clock, on so many GPUs (or processes)."""
    score, plain, unadapted = result.score, compared.plain, compared.unadapted
    rate = score.tokens / seconds / gpus
    found: dict[str, Any] = {
        "val_bpb": score.bpb,
        "val_loss": score.loss,
        "val_bpb_raw": score.loss * score.tokens / math.log(2) / raw_bytes if raw_bytes else "unavailable",
        "quantized_bpb": plain.bpb,
        "quantized_loss": plain.loss,
        "ttt_gain_bpb": unadapted.bpb - score.bpb if unadapted else "unavailable",
        "update_steps": sum(update.steps for update in result.updates),
        "eval_seconds": seconds,
        "full_set_seconds": FULL_TARGETS / (FULL_GPUS * rate),
        "scored_tokens": score.tokens,
        "scored_bytes": score.bytes,
        "temperature": config.temperature,
    }
    if config.temperature != 1:
        found["temperature_legality"] = "legal if found on training text, as `pgolf sweep temperature` does"
    if config.cache.sharpness:
        found["cache"] = to_dict(config.cache)
        found["cache_legality"] = "legal if its constants were found on training text, as `pgolf sweep cache` does"
    return found | subset_scores("quantized", compared.plain_losses, token_bytes[1:], config.subset_targets)
