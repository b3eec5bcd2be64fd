"""The smallest model that the tests of sweeps over evaluations score."""

import torch

from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT


def one_layer(vocab: int) -> GPT:
    """Weights of the initialisation, always the same."""
    torch.manual_seed(0)
    shape = ModelConfig(
        layers=1, dim=16, heads=2, kv_heads=1, mlp_mult=1.0, rope_dims=4, xsa_layers=0, parallel="none",
        loop_start=0, loop_end=0, loop_runs=1,
    )  # fmt: skip
    return GPT(shape, vocab)
