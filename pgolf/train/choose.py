"""Which of several averages of one run is best, judged on training data that the run has not trained on.

Choosing on validation data, as PR 635 did, uses what may only be scored. The passes belong to the training clock.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgolf import ranks
from pgolf.data.batches import Batch
from pgolf.model.attention import Segments

if TYPE_CHECKING:
    from pgolf.train.trainer import Trainer


@torch.no_grad()
def choose(trainer: "Trainer", final: list[Tensor], batches: Iterator[Batch]) -> list[Tensor]:
    """Of `final` and the averages of `train.ema_candidates`, the weights with the lowest mean loss on the next
    `train.choose_batches`, the first of equals; the model's are kept. Of several processes each takes its part of them.
    """
    mine = range(ranks.rank(), trainer.config.choose_batches, ranks.world())
    taken = list(itertools.islice(batches, len(mine)))
    choices = [final, *(ema.average for ema in trainer.candidates.values())]
    kept = [weight.clone() for weight in trainer.average.live]
    scores = []
    for weights in choices:
        trainer.put(weights if weights is not trainer.average.live else kept)
        found = sum(_loss(trainer, batch) for batch in taken)
        scores.append(ranks.add(torch.tensor(found, dtype=torch.float64)).item())
    trainer.put(kept)
    return choices[scores.index(min(scores))]


def _loss(trainer: "Trainer", batch: Batch) -> float:
    ids, targets, cu_seqlens = (None if t is None else t.to(trainer.device) for t in batch)
    segments = None if cu_seqlens is None else Segments(cu_seqlens, trainer.config.seq_len)
    assert ids is not None
    assert targets is not None
    return trainer.model.losses(ids, targets, segments).double().mean().item()
