"""Steps along the gradient, all of one length, instead of those of AdamW: `evaluate.lora.optimizer: normalized`."""

import torch
from torch import Tensor

from pgolf.evaluate.config import LoRAConfig


@torch.no_grad()
def normalized(weight: Tensor, gradient: Tensor, config: LoRAConfig) -> None:
    """One step along the gradient, in place: w <- (1 - lr wd) w - lr sqrt(n) g / |g| for each row of n numbers.

    As long as a step of AdamW whose moments are those of this gradient, but small entries stay small: the first steps
    of AdamW turn them all, noise included, to +-lr. Nothing is remembered.
    """
    rows, length = gradient.flatten(1), gradient[0].numel() ** 0.5
    norm = rows.norm(dim=1).clamp_min(config.eps).view(-1, *[1] * (gradient.ndim - 1))
    weight.mul_(1 - config.lr * config.weight_decay).addcdiv_(gradient, norm, value=-config.lr * length)
