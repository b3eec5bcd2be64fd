"""Calibration text that the model writes itself (PR 1019): no training data is read after training.

The first token is uniform over the vocabulary, every further one drawn from softmax(logits / temperature), with all of
the row before it as context.
"""

from collections.abc import Iterator

import torch

from pgolf.data.batches import Batch
from pgolf.model.gpt import GPT


@torch.no_grad()
def generated_rows(model: GPT, rows: int, seq_len: int, temperature: float, seed: int) -> Iterator[Batch]:
    """Endless batches of [rows, seq_len] tokens, on the CPU; the same seed gives the same text on the same device."""
    device, vocab_size = model.tok_emb.weight.device, model.tok_emb.num_embeddings
    generator = torch.Generator(device).manual_seed(seed)
    while True:
        ids = torch.randint(vocab_size, (rows, 1), generator=generator, device=device)
        while ids.size(1) <= seq_len:
            logits = model(ids)[:, -1].float()
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
        ids = ids.cpu()
        yield Batch(ids[:, :-1], ids[:, 1:], None)
