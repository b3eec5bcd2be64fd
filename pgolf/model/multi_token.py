"""Multi-token prediction (PR 549, off there; PR 401's author): further heads, in training only, left out of the model.

    loss = CE + w mean_k CE_k,   head k predicts the target k + 1 places after the main one

Heads are [V, d], zero at first, not tied, on the normalised final state, with the same softcap. CE_k is the mean over
the places that have such a target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.config import ModelConfig
from pgolf.model.linear import Linear


def build_heads(config: ModelConfig, vocab_size: int) -> nn.ModuleList:
    """The heads, k = 0 first."""
    return nn.ModuleList(Linear(config.dim, vocab_size, zero=True) for _ in range(config.multi_token.heads))


def further_losses(heads: nn.ModuleList, hidden: Tensor, targets: Tensor, config: ModelConfig) -> Tensor:
    """w / K sum_k CE_k at each place [B, T], float32, such that the mean over all places is w mean_k CE_k."""
    batch, length = targets.shape
    total = torch.zeros(batch, length, device=hidden.device)
    for ahead, head in enumerate(heads, start=1):
        if ahead >= length:
            break
        logits = config.softcap * torch.tanh(head(hidden[:, :-ahead]) / config.softcap)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), targets[:, ahead:].flatten(), reduction="none")
        total = total + F.pad(losses.view(batch, -1), (0, ahead)) * (length / (length - ahead))
    return config.multi_token.weight / len(heads) * total
