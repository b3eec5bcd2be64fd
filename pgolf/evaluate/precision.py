"""Adaptation on a GPU in float32: matrix products in TF32, attention in bfloat16, all else exact.

In bfloat16 any two orders of computation differ by 0.011 nats per token, because each rounding of the residual stream
that falls the other way makes others fall so behind it: a document's loss in compiled and in eager mode differed by up
to 0.0025.
"""

import contextlib
from collections.abc import Iterator

import torch

from pgolf.model.attention import rounded
from pgolf.model.gpt import GPT


@contextlib.contextmanager
def precise(model: GPT, length: int) -> Iterator[None]:
    """Within, a model in bfloat16 computes so, on rows of up to `length` tokens."""
    dtype = model.dtype
    if dtype != torch.bfloat16:
        yield
        return
    try:
        model.dtype = torch.float32
        model.prepare(length)
        with rounded():
            yield
    finally:
        model.dtype = dtype
        model.prepare(length)
