"""Score-first test-time training, chunk by chunk (PR 461, 549, 1413, 1493).

The targets are cut into G chunks of K. For each chunk in order:

    1. score the windows whose first scored target lies in it, with the weights as they are, without gradients;
    2. unless it is the last, train on its own tokens: rows of L, E epochs, mean cross-entropy, gradient norm clipped,
       SGD with momentum that is never reset, at the rate  lr_c = lr/2 (1 + cos(pi c / H)),  H the chunks trained on.

So a loss depends on earlier tokens only, and no target is scored twice. Where windows are cut at document starts, the
rows of training are too: a model that was trained on isolated documents has never seen another one's tokens.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgolf.errors import InputError
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig
from pgolf.evaluate.score import BOS, finite, on_device, score_windows
from pgolf.evaluate.updates import Update
from pgolf.evaluate.windows import Windows
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT

Report = Callable[[NDArray[np.float32], int, int], None]
"""Gets the losses of all targets scored so far, the chunks done and the chunks in all."""


class Chunk(NamedTuple):
    """One round: `windows` are scored, then the targets [first, end) may be trained on."""

    windows: Windows
    first: int
    end: int


def plan_chunks(windows: Windows, targets: int, chunk_tokens: int) -> list[Chunk]:
    """Give each window to the chunk min(s // K, G - 1) of its first scored target s, G = ceil(targets / K)."""
    edges = np.arange(0, targets, chunk_tokens)
    bounds = [*np.searchsorted(windows.first, edges), len(windows.first)]
    assert (np.diff(windows.first) > 0).all(), "windows must come in the order of their targets"
    return [
        Chunk(Windows(*(column[a:b] for column in windows)), first, min(first + chunk_tokens, targets))
        for a, b, first in zip(bounds[:-1], bounds[1:], edges.tolist(), strict=True)
    ]


def learning_rate(config: ChunkTTTConfig, chunk: int, trained: int) -> float:
    """Rate for a chunk, of `trained` that are trained on: cosine, times (c + 1) / W over the first W warm-up chunks."""
    warmup = min(1.0, (chunk + 1) / max(config.warmup_chunks, 1))
    return config.lr * warmup * 0.5 * (1 + math.cos(math.pi * chunk / trained))


def adapted_parameters(model: GPT, config: ChunkTTTConfig) -> list[nn.Parameter]:
    """The parameters that may change; embeddings are tied to the output, so freezing them freezes that too."""
    if config.freeze_blocks > len(model.blocks):
        raise InputError(
            f"`evaluate.chunk.freeze_blocks` is {config.freeze_blocks}, the model has {len(model.blocks)}: lower it"
        )
    frozen: list[nn.Module] = list(model.blocks[: config.freeze_blocks])
    if config.freeze_embedding:
        frozen += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    kept = {id(parameter) for module in frozen for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in kept]


class Learner:
    """SGD on a model's weights, and the average that scores in their place where there is one."""

    def __init__(self, model: GPT, config: ChunkTTTConfig, rows_per_pass: int, isolate_documents: bool) -> None:
        """`rows_per_pass`: rows that fit one forward pass; an update adds up the gradients of several."""
        self.model, self.config = model, config
        self.rows_per_pass, self.isolate_documents = rows_per_pass, isolate_documents
        self.parameters = adapted_parameters(model, config)
        self.optimizer = torch.optim.SGD(self.parameters, lr=config.lr, momentum=config.momentum)
        self.average = None if config.ema is None else _copy(self.parameters)

    @contextlib.contextmanager
    def borrowed_weights(self) -> Iterator[None]:
        """Afterwards the model is as it was."""
        before = _copy(self.parameters)
        self.optimizer.zero_grad()
        try:
            yield
        finally:
            self.optimizer.zero_grad()
            _put(self.parameters, before)

    @contextlib.contextmanager
    def scoring_weights(self) -> Iterator[None]:
        """Within, the model holds the weights that score."""
        if self.average is None:
            yield
            return
        live = _copy(self.parameters)
        _put(self.parameters, self.average)
        yield
        _put(self.parameters, live)

    def train(self, rows: Tensor, lr: float, epochs: int) -> int:
        """Epochs over one chunk's rows [2, n, L], inputs and targets, on the host; returns the number of updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        steps = 0
        for _ in range(epochs):
            for batch in torch.split(rows, self.config.rows_per_step, dim=1):
                self.update(batch)
                steps += 1
        if self.average is not None:
            assert self.config.ema is not None
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter.detach(), 1 - self.config.ema)
        return steps

    def update(self, batch: Tensor) -> None:
        """One step on the mean loss of rows; with several ranks the gradients would be averaged before the clip."""
        for rows in torch.split(batch, self.rows_per_pass, dim=1):
            loss = self.losses(rows).sum() / batch[1].numel()
            loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def losses(self, rows: Tensor) -> Tensor:
        """Losses, nats, of rows [2, n, L] on the host; isolated documents go in as segments of one packed row."""
        device, segments = self.model.tok_emb.weight.device, None
        if self.isolate_documents:
            starts = rows[0] == BOS
            starts[:, 0] = True
            edges = torch.cat([starts.flatten().nonzero()[:, 0], torch.tensor([starts.numel()])])
            segments = Segments(edges.int().to(device), rows.size(2))
            rows = rows.flatten(1)[:, None]
        self.model.prepare(rows.size(2))
        ids, targets = rows.to(device)
        return self.model.losses(ids, targets, segments)


def chunk_ttt(
    model: GPT,
    tokens: NDArray[np.uint16],
    windows: Windows,
    config: EvaluateConfig,
    report: Report = lambda losses, done, total: None,
) -> tuple[NDArray[np.float32], list[Update]]:
    """Loss of every target [n - 1], nats, of a stream [n], and what the weights learned when; the model is unchanged.

    `windows` are those of `windows_for`, in stream order. Several ranks would share the windows and the rows of each
    chunk between them; everything else is the same on all.
    """
    settings, seq_len = config.chunk, config.seq_len
    stream, losses = on_device(tokens, model.tok_emb.weight.device)
    chunks = plan_chunks(windows, len(tokens) - 1, settings.chunk_tokens)
    trained = len(chunks) - 1
    if settings.max_train_chunks is not None:
        trained = min(trained, settings.max_train_chunks)
    learner = Learner(model, settings, max(config.batch_tokens // seq_len, 1), config.isolate_documents)
    found, updates, scored = np.empty(len(tokens) - 1, dtype=np.float32), [], 0
    with learner.borrowed_weights():
        for index, (mine, first, end) in enumerate(chunks):
            if len(mine.end):
                with learner.scoring_weights():
                    score_windows(model, stream, mine, config.batch_tokens, losses)
                fresh = slice(scored, scored := int(mine.end[-1]))
                found[fresh] = finite(losses[fresh].cpu().numpy(), "lower `evaluate.chunk.lr`")
            report(found[:scored], index + 1, len(chunks))
            rows = (end - first) // seq_len
            if index < trained and rows:
                end = first + rows * seq_len
                assert end <= scored, "training would see a target that is not scored yet"
                pair = (tokens[first + k : end + k].reshape(rows, seq_len) for k in (0, 1))
                data = torch.from_numpy(np.stack([*pair]).astype(np.int64))
                epochs = _epochs(settings, found[first:end], found[:scored])
                steps = learner.train(data, learning_rate(settings, index, trained), epochs)
                updates.append(Update(scored, first, end, steps))
    return found, updates


def _epochs(config: ChunkTTTConfig, chunk: NDArray[np.float32], scored: NDArray[np.float32]) -> int:
    """More (or fewer) passes over a chunk that was harder than the mean of everything scored so far."""
    if config.hard_epochs is None or chunk.mean(dtype=np.float64) <= scored.mean(dtype=np.float64):
        return config.epochs
    return config.hard_epochs


def _copy(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _put(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
