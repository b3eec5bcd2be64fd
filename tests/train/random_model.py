"""A model in which nothing is zero or one by chance of its initialisation."""

import torch

from pgolf.model.gpt import GPT


def random_model(config, vocab, length, spread=0.1):
    """Noise added to every parameter; for rows of `length` tokens."""
    torch.manual_seed(0)
    model = GPT(config, vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=spread)
    model.prepare(length)
    return model
