"""A model of four layers with recurrence and lanes whose weights are far from their start."""

import torch

from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

CONFIG = ModelConfig(
    layers=4, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=2,
    loop_start=1, loop_end=2, loop_runs=2,
)  # fmt: skip


def looped_model(vocab: int, length: int) -> GPT:
    """For rows of that length."""
    torch.manual_seed(0)
    model = GPT(CONFIG, vocab)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.prepare(length)
    return model
