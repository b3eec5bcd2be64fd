"""Kernels compiled side by side before training's warm-up, which would compile one after another.

A few tokens go forward and backward through the model. Products with epilogues whose kernels are missing are left out
and compiled by other processes (`pgolf.kernels.epilogue.compiled_aside`), while this one goes on and compiles what is
not theirs, Triton's kernels and attention's. What comes out is nothing that was computed, and thrown away.
"""

import torch

from pgolf.data.batches import BUCKET
from pgolf.kernels.epilogue import compiled_aside
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT
from pgolf.train.config import TrainConfig

TOKENS, ROWS = 256, 16
"""At most, of a row; rows where documents are not packed: products in 8 bits take multiples of 16 tokens."""


def precompile(model: GPT, config: TrainConfig) -> None:
    """Of a model behind kernels (`pgolf.train.fast`), for batches of the configured form. It has no gradients before
    and after.
    """
    device, runs, packed = model.tok_emb.weight.device, model.runs, config.batches == "packed"
    tokens = min(TOKENS, config.micro_tokens if packed else config.seq_len)
    ids = torch.arange(tokens, device=device).expand(1 if packed else ROWS, -1) % model.tok_emb.num_embeddings
    segments = None
    if packed:
        starts = torch.tensor([0, tokens // 2, *[tokens] * (BUCKET - 2)], dtype=torch.int32, device=device)
        segments = Segments(starts, max(tokens, config.seq_len))
    with compiled_aside():
        for each in sorted({1, model.config.loop_runs}):
            model.runs = each
            model.losses(ids, ids, segments).sum().backward()  # type: ignore[no-untyped-call]
    model.runs = runs
    model.zero_grad()
