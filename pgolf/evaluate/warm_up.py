"""Compilation before the evaluation clock runs: two passes of the adaptation over random tokens.

Random ones, because validation tokens under an optimizer before their score would be a violation (flagged in PR 1530).
The published program does the same with contexts of 48 and 2,048 tokens.
"""

from dataclasses import replace

import numpy as np

from pgolf.evaluate.adapters import Adapters
from pgolf.evaluate.compiled import Backend, compiled
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.documents import find_documents
from pgolf.evaluate.journal import Journal
from pgolf.evaluate.lora_ttt import Steady, Text, lora_batch
from pgolf.evaluate.precision import precise
from pgolf.evaluate.score import BOS, on_device
from pgolf.evaluate.weights import borrowed, frozen
from pgolf.model.gpt import GPT

ROWS = 3
"""Documents: any number from 2 on stands for all."""


def compile_adaptation(model: GPT, config: EvaluateConfig, backend: Backend) -> None:
    """Leave behind all graphs and kernels that `ttt: lora` or `phased` will need; the model is unchanged.

    The documents have L targets each: one half is scored and learned from, then the other is scored.
    """
    length, parameters = config.seq_len, list(model.parameters())
    tokens = np.random.default_rng(0).integers(BOS + 1, model.tok_emb.num_embeddings, ROWS * length + 1, np.uint16)
    tokens[::length] = BOS
    halves = replace(config.lora, chunk_tokens=-(-length // 2))
    small = replace(config, lora=halves, chunk=replace(config.chunk, chunk_tokens=length, max_train_chunks=1))
    documents, text = find_documents(tokens, BOS), Text(*on_device(tokens, model.tok_emb.weight.device))
    model.prepare(length)
    with borrowed(parameters), precise(model, length):
        adapters = Adapters(model, halves, ROWS)
        adapters.reset(0)
        with frozen(parameters), compiled(model, backend):
            lora_batch(model, text, documents, adapters, small, Journal(), Steady())
        if config.ttt == "phased":
            from pgolf.evaluate.shared_ttt import learn_shared

            learn_shared(model, tokens, documents, small)
