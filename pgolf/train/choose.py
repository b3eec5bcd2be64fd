"""Which of several averages of one run is best, judged on training data that the run has not trained on.

Choosing on validation data, as PR 635 did, uses what may only be scored. The passes belong to the training clock.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgolf import ranks
from pgolf.data.batches import Batch
from pgolf.model.attention import Segments

if TYPE_CHECKING:
    from pgolf.train.trainer import Trainer


@torch.no_grad()
def choose(trainer: "Trainer", choices: Mapping[str, list[Tensor]], batches: Sequence[Batch]) -> str:
    """The name of the weights with the lowest mean loss on `batches`, the first of equals; the model's are kept.

    Of several processes each brings its part of the batches.
    """
    kept = [weight.clone() for weight in trainer.average.live]
    scores = {}
    for name, weights in choices.items():
        trainer.put(weights if weights is not trainer.average.live else kept)
        found = sum(_loss(trainer, batch) for batch in batches)
        scores[name] = ranks.add(torch.tensor(found, dtype=torch.float64)).item()
    trainer.put(kept)
    return min(scores, key=scores.__getitem__)


def _loss(trainer: "Trainer", batch: Batch) -> float:
    ids, targets, cu_seqlens = (None if t is None else t.to(trainer.device) for t in batch)
    segments = None if cu_seqlens is None else Segments(cu_seqlens, trainer.config.seq_len)
    assert ids is not None
    assert targets is not None
    return trainer.model.losses(ids, targets, segments).double().mean().item()
