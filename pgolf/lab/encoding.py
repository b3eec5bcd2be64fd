"""Sizes of quantized models, found in processes of their own while the next scheme is rounded and scored.

brotli takes a minute and a half of one core for 16 MB, our coder ten seconds: what a sweep waits for.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from torch import Tensor

from pgolf.budget import Clock
from pgolf.codec.choose import Choice
from pgolf.codec.layout import Array
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.quant.artifact import model_bytes
from pgolf.quant.config import QuantizeConfig

Size = dict[str, Any]
"""`bytes_model` and `compress_seconds`."""


@contextlib.contextmanager
def encoders(workers: int) -> Iterator[Executor]:
    """A pool of processes with one thread each; leaving it by an error or an interruption ends them at once.

    They are started afresh: a process that uses a GPU cannot be forked.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new process: an interruption of the terminal is the sweep's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def submit(
    pool: Executor,
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    vocab_size: int,
    scheme: QuantizeConfig,
    tokenizer: str,
    codec: Choice,
) -> Future[Size]:
    """Begin to encode; arguments as for `model_bytes`."""
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}  # tensors would travel through shared memory
    return pool.submit(_size, arrays, model, vocab_size, scheme, tokenizer, codec)


def result(future: Future[Size]) -> Size:
    """What was found; InputError where the process died."""
    try:
        return future.result()
    except BrokenProcessPool:
        raise InputError("a process that encodes died, most likely for want of memory: lower --workers") from None


def _size(
    arrays: Mapping[str, Array],
    model: ModelConfig,
    vocab_size: int,
    scheme: QuantizeConfig,
    tokenizer: str,
    codec: Choice,
) -> Size:
    tensors, clock = {key: torch.from_numpy(array) for key, array in arrays.items()}, Clock()
    with clock.phase("compress"):
        size = model_bytes(tensors, model, vocab_size, scheme, tokenizer, codec)
    return {"bytes_model": size, "compress_seconds": clock.seconds("compress")}
