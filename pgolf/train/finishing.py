"""Passes after the last scheduled step, one micro-batch per update, the averages going on (PR 401's author).

replay burst        the last micro-batches of the run again, some epochs, at a small constant learning rate
self-distillation   fresh micro-batches; the teacher is the average as it is when the pass starts:

    loss = alpha tau^2 KL(teacher_tau || student_tau) + (1 - alpha) CE,  x_tau = softmax(logits / tau)

The divergence is per token; the published program divides it by the rows instead, so that its weight grows with their
length. The passes belong to the training clock.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.data.batches import Batch
from pgolf.model.attention import Segments
from pgolf.train.config import FinishConfig
from pgolf.train.schedule import Settings, settings
from pgolf.train.trainer import Trainer


def run_finish(trainer: Trainer, taken: int, reopen: Callable[[int], Iterator[Batch]]) -> None:
    """All configured passes; `reopen(n)` is the run's data from micro-batch n on, of which `taken` are used."""
    config, finish = trainer.config, trainer.config.finish
    steps = config.steps or taken // config.micro_batches
    last = settings(config, steps, 1.0)._replace(micro_batches=1)
    replayed = min(finish.replay_batches, taken)
    for _ in range(finish.replay_epochs if replayed else 0):
        batches, now = reopen(taken - replayed), last._replace(multiplier=finish.replay_lr)
        for _ in range(replayed):
            trainer.backward(batches, now)
            trainer.update(now)
    if finish.distill_steps:
        distill(trainer, reopen(taken), last._replace(multiplier=finish.distill_lr))


def distill(trainer: Trainer, batches: Iterator[Batch], now: Settings) -> None:
    """Self-distillation from the average of `train.average`, with the settings of every step."""
    finish, model = trainer.config.finish, trainer.model
    average = [tensor.clone() for tensor in trainer.final_average()]
    for _ in range(finish.distill_steps):
        ids, targets, cu_seqlens = (None if t is None else t.to(trainer.device) for t in next(batches))
        segments = None if cu_seqlens is None else Segments(cu_seqlens, trainer.config.seq_len)
        assert ids is not None
        assert targets is not None
        kept = [weight.clone() for weight in trainer.average.live]
        trainer.put(average)
        with torch.no_grad():
            teacher = model.eval()(ids, segments)
        model.train()
        trainer.put(kept)
        loss = distillation_loss(model(ids, segments), teacher, targets, finish)
        loss.backward()  # type: ignore[no-untyped-call]
        if trainer.config.clip == "local":  # one part: nothing to sum
            torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.config.grad_clip)
        trainer.update(now)


def distillation_loss(student: Tensor, teacher: Tensor, targets: Tensor, config: FinishConfig) -> Tensor:
    """Mean over tokens of the loss above; student and teacher logits [B, T, V], targets [B, T]."""
    tau, alpha = config.distill_temperature, config.distill_weight
    student, teacher = student.flatten(0, 1).float(), teacher.flatten(0, 1).float()
    divergence = F.kl_div(
        F.log_softmax(student / tau, -1), F.log_softmax(teacher / tau, -1), reduction="batchmean", log_target=True
    )
    return alpha * tau**2 * divergence + (1 - alpha) * F.cross_entropy(student, targets.flatten())
