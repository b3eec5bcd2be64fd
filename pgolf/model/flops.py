"""FLOPs of a forward pass: multiply-adds count 2; norms, gates, softmax and the embedding lookup are left out."""

import math
import re

import torch

from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.model.wiring import wire


def forward_flops(config: ModelConfig, vocab_size: int, context: float, looped: bool) -> int:
    """Forward FLOPs per token, with `context` keys attended to on average."""
    maps = 2 if config.attention == "differential" else 1
    weights, outside = [0] * config.layers, 0
    with torch.device("meta"):
        model = GPT(config, 1)
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if found := re.match(r"blocks\.(\d+)\.(attn|mlp)\.[\w.]+\.weight$", name):
            weights[int(found[1])] += math.prod(shape)
        elif name.endswith(".proj.weight"):  # of hashed and value embeddings
            outside += math.prod(shape)
    wiring = wire(config, config.loop_runs if looped else 1)
    layers = config.stack_runs * (wiring.encoder + wiring.decoder)
    blocks = sum(2 * weights[layer] + 4 * maps * config.dim * context for layer in layers)
    return round(blocks + 2 * outside + 2 * config.dim * vocab_size)
