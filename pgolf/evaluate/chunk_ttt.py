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
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgolf import ranks
from pgolf.errors import InputError
from pgolf.evaluate.config import ChunkTTTConfig, EvaluateConfig
from pgolf.evaluate.score import BOS, Scored, finite, on_device, score_windows, share
from pgolf.evaluate.updates import Update
from pgolf.evaluate.weights import borrowed, copies, put
from pgolf.evaluate.windows import Windows
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT


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
    """Rate for a chunk, of `trained` that are trained on: f + (1 - f) cosine with the floor f, times (c + 1) / W over
    the first W warm-up chunks.
    """
    warmup = min(1.0, (chunk + 1) / max(config.warmup_chunks, 1))
    cosine = 0.5 * (1 + math.cos(math.pi * chunk / trained))
    return config.lr * warmup * (config.lr_floor + (1 - config.lr_floor) * cosine)


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


def rate_groups(model: GPT, parameters: list[nn.Parameter], by_block: bool) -> list[dict[str, Any]]:
    """Groups of SGD, each with a factor on the rate: (i + 1) / n for block i of n if `by_block`, else 1."""
    blocks = {id(p): i for i, block in enumerate(model.blocks) for p in block.parameters()} if by_block else {}
    factors = [(blocks.get(id(p), len(model.blocks) - 1) + 1) / len(model.blocks) for p in parameters]
    return [
        {"params": [p for p, mine in zip(parameters, factors, strict=True) if mine == factor], "factor": factor}
        for factor in sorted(set(factors))
    ]


class Learner:
    """SGD on a model's weights, and the average that scores in their place where there is one."""

    def __init__(self, model: GPT, config: ChunkTTTConfig, rows_per_pass: int, isolate_documents: bool) -> None:
        """`rows_per_pass`: rows that fit one forward pass; an update adds up the gradients of several."""
        self.model, self.config = model, config
        self.rows_per_pass, self.isolate_documents = rows_per_pass, isolate_documents
        self.parameters = adapted_parameters(model, config)
        groups = rate_groups(model, self.parameters, config.block_rates)
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.average = None if config.ema is None else copies(self.parameters)
        self.optimizer.zero_grad()

    @contextlib.contextmanager
    def scoring_weights(self) -> Iterator[None]:
        """Within, the model holds the weights that score."""
        if self.average is None:
            yield
            return
        live = copies(self.parameters)
        put(self.parameters, self.average)
        yield
        put(self.parameters, live)

    def train(self, rows: Tensor, lr: float, epochs: int) -> int:
        """Epochs over one chunk's rows [2, n, L], inputs and targets, on the host; returns the number of updates."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
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
        """One step on the mean loss of rows [2, n, L]; with `sam`, along the gradient at p + radius g / |g|."""
        self.gradients(batch)
        if self.config.sam:
            with borrowed(self.parameters):
                climb(self.parameters, self.config.sam)
                self.gradients(batch)
                steepest = [parameter.grad for parameter in self.parameters]
            for parameter, gradient in zip(self.parameters, steepest, strict=True):
                parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self, batch: Tensor) -> None:
        """Of the mean loss of rows [2, n, L]; each rank takes some of them, and they add up."""
        mine = batch.tensor_split(ranks.world(), dim=1)[ranks.rank()]
        for rows in torch.split(mine, self.rows_per_pass, dim=1) if mine.size(1) else ():
            loss = self.losses(rows).sum() / batch[1].numel()
            loss.backward(inputs=self.parameters)  # type: ignore[no-untyped-call]
        if ranks.world() > 1:
            for parameter in self.parameters:
                parameter.grad = ranks.add(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)

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
    report: Scored = lambda *done: None,
) -> tuple[NDArray[np.float32], list[Update]]:
    """Loss of every target [n - 1], nats, of a stream [n], and what the weights learned when; the model is unchanged.

    `windows` are those of `windows_for`, in stream order. Several ranks share the windows and the rows of each chunk
    between them; everything else is the same on all.
    """
    settings, seq_len = config.chunk, config.seq_len
    stream, losses = on_device(tokens, model.tok_emb.weight.device)
    chunks = plan_chunks(windows, len(tokens) - 1, settings.chunk_tokens)
    trained = len(chunks) - 1
    if settings.max_train_chunks is not None:
        trained = min(trained, settings.max_train_chunks)
    learner = Learner(model, settings, max(config.batch_tokens // seq_len, 1), config.isolate_documents)
    found, updates, scored = np.empty(len(tokens) - 1, dtype=np.float32), [], 0
    with borrowed(learner.parameters):
        for index, (mine, first, end) in enumerate(chunks):
            fresh = slice(scored, scored)
            if len(mine.end):
                with learner.scoring_weights():
                    score_windows(model, stream, share(mine), config.batch_tokens, losses)
                fresh = slice(scored, scored := int(mine.end[-1]))
                found[fresh] = finite(ranks.merge_losses(losses[fresh]).cpu().numpy(), "lower `evaluate.chunk.lr`")
            report(found[fresh], fresh, "", index + 1, len(chunks))
            rows = (end - first) // seq_len
            if index < trained and rows:
                end = first + rows * seq_len
                assert end <= scored, "training would see a target that is not scored yet"
                epochs = _epochs(settings, found[first:end], found[:scored])
                data = rows_of(tokens, first, rows, seq_len)
                steps = learner.train(data, learning_rate(settings, index, trained), epochs)
                updates.append(Update(scored, first, end, steps))
    return found, updates


@torch.no_grad()
def climb(parameters: list[nn.Parameter], radius: float) -> None:
    """p + radius g / (|g| + 1e-12), |g| over all parameters; the gradients are gone (SAM, Foret et al. 2021)."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm() + 1e-12
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.add_(gradient * (radius / norm))
        parameter.grad = None


def rows_of(tokens: NDArray[np.uint16], first: int, rows: int, length: int) -> Tensor:
    """Inputs and targets [2, rows, length] of the targets from `first` on, on the host."""
    pair = (tokens[first + k : first + k + rows * length].reshape(rows, length) for k in (0, 1))
    return torch.from_numpy(np.stack([*pair]).astype(np.int64))


def _epochs(config: ChunkTTTConfig, chunk: NDArray[np.float32], scored: NDArray[np.float32]) -> int:
    """More (or fewer) passes over a chunk that was harder than the mean of everything scored so far."""
    if config.hard_epochs is None or chunk.mean(dtype=np.float64) <= scored.mean(dtype=np.float64):
        return config.epochs
    return config.hard_epochs
