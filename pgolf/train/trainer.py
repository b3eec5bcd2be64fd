"""Model, optimizers and averages, advanced one step at a time; `pgolf.train.loop` decides when and with what."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf import ranks
from pgolf.data.batches import BUCKET, Batch, cut_rows
from pgolf.model.attention import Segments
from pgolf.model.gpt import GPT
from pgolf.train.averaging import EMA
from pgolf.train.compiled import compile_model, plain_model
from pgolf.train.config import TrainConfig
from pgolf.train.exchange import Exchange
from pgolf.train.gradients import add
from pgolf.train.groups import layer_of, split_parameters
from pgolf.train.muon import Muon
from pgolf.train.schedule import ALL_RUNS, Settings, settings

if TYPE_CHECKING:
    from pgolf.train.snapshots import LastMean, RunningMean


class Trainer:
    """One rank's training state."""

    def __init__(self, model: GPT, config: TrainConfig) -> None:
        self.model, self.config = model.begin_training(), config
        self.device = model.tok_emb.weight.device
        groups = split_parameters(model, config.muon.also)
        cuda = self.device.type == "cuda"
        self.muon = Muon(groups["muon"], config.muon, torch.bfloat16 if cuda else torch.float32, config.late)
        named = adam_groups(groups, config)
        self.adam = torch.optim.AdamW(
            [group | {"params": list(group["params"].values())} for group in named],
            betas=(config.beta1, config.beta2),
            eps=1e-8,
            fused=True,
        )
        self.exchange = None
        if ranks.world() > 1:
            self.exchange = Exchange(self.muon, [p for group in self.adam.param_groups for p in group["params"]])
        self.adam_names = [name for group in named for name in group["params"]]
        self.average = EMA(model, config.ema)
        self.candidates = {str(decay): EMA(model, decay) for decay in config.ema_candidates}
        self.snapshots = self._snapshots()
        if config.kernels == "triton":
            from pgolf.train.fast import install

            install(model, config)
        if cuda and config.compile:
            compile_model(model, mode=config.compile_mode)
        self.graphs = cuda and config.graphs
        self.run: Callable[..., Tensor] = self._micro_batch
        self.parameters = list(model.parameters())
        if self.graphs:
            from pgolf.train.replay import Replay

            self.run = Replay(self._micro_batch, self.parameters)

    def backward(self, batches: Iterator[Batch], now: Settings) -> Tensor:
        """Average the gradients of one step's micro-batches; returns the mean loss of all tokens, nats per token.

        `batches` are those of this process. Of several, each takes its part of the step, and what they found is being
        added up when this returns: see `Exchange`.
        """
        self.model.runs = min(now.runs, self.model.config.loop_runs)
        total, share = torch.zeros((), device=self.device), torch.tensor(1 / now.micro_batches)
        with self._rounded(now.quantized):
            for _ in range(now.micro_batches // ranks.world()):
                total += self.run(self.model.runs, *cut_rows(next(batches), now.seq_len), share)
        if self.exchange is not None:
            self.exchange.launch(total)
        return total

    def _micro_batch(self, runs: int, *batch: Any) -> Tensor:
        """Add the gradients of one micro-batch's part of the loss, which is returned, each part clipped by itself where
        that is local; `runs` are the model's already.
        """
        moved: list[Any] = [each if each is None else each.to(self.device, non_blocking=True) for each in batch]
        ids, targets, cu_seqlens, share = moved
        segments = None
        if cu_seqlens is not None:
            torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)  # one graph for any number of documents
            segments = Segments(cu_seqlens, self.config.seq_len)
        losses = self.model.losses(ids, targets, segments)
        before = [parameter.grad for parameter in self.parameters]
        self.model.zero_grad()
        kept = losses
        if self.config.token_fraction < 1:
            from pgolf.train.selective import hardest

            kept = hardest(losses, self.config.token_fraction)
        # not the mean, whose gradient is a number for every token: a sum's is one for all
        (kept.sum() / kept.numel()).backward(share)  # type: ignore[no-untyped-call]
        add(self.parameters, before, self.config.grad_clip * share if self.config.clip == "local" else None)
        return losses.detach().mean() * share  # type: ignore[no-any-return]

    def update(self, now: Settings) -> None:
        """Clip, step both optimizers at the scheduled rates, clear the gradients, average."""
        if self.config.clip == "global":
            from pgolf.train.norms import clip_globally

            clip_globally(self, self.config.grad_clip)
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * now.multiplier
        self.muon.step(self.config.muon.lr * now.multiplier, now.momentum, now.decay)
        if self.exchange is not None:
            self.exchange.wait()
        self.adam.step()
        self.adam.zero_grad()
        self.model.zero_grad()
        for average in (self.average, *self.candidates.values()):
            average.update()

    def snapshot(self, step: int, now: Settings) -> None:
        """Take a snapshot where `train.snapshots` wants one; `step` counts the finished steps."""
        if self.snapshots is None or step % self.config.snapshots.every:
            return
        if self.config.average == "lawa" or now.multiplier < self.config.snapshots.below:
            self.snapshots.take()

    def finish(self, batches: Iterator[Batch]) -> None:
        """Leave training mode with the average in the model: the configured one, or the best on further data."""
        self.model.end_training()
        del self.run  # graphs hold as much memory as the training
        final = self.final_average()
        if self.config.choose_batches:
            from pgolf.train.choose import choose

            final = choose(self, final, batches)
        self.put(final)
        plain_model(self.model)
        if self.config.kernels == "triton":
            from pgolf.train.fast import remove

            remove(self.model)

    def candidate_averages(self) -> dict[str, Tensor]:
        """Every average of `train.ema_candidates` as `decay/parameter`."""
        shipped = dict(self.model.named_parameters())
        named = {decay: ema.state() for decay, ema in self.candidates.items()}
        return {f"{decay}/{name}": state[name] for decay, state in named.items() for name in shipped}

    def final_average(self) -> list[Tensor]:
        """What `train.average` names; where it has no snapshots to average, what they would have been taken of."""
        kind, taken = self.config.average, 0 if self.snapshots is None else int(self.snapshots.count)
        if self.snapshots is not None and taken > (kind == "tight_swa"):
            return self.snapshots.average
        return self.average.average if kind in ("ema", "tight_swa") else self.average.live

    @torch.no_grad()
    def put(self, weights: list[Tensor]) -> None:
        """Replace the model's weights, each in its own type."""
        torch._foreach_copy_(self.average.live, weights)

    def warm_up(self, batches: Iterator[Batch]) -> None:
        """Run every kind of pass, off the clock, and throw the gradients away: weights, optimizers stay untouched."""
        batch = next(batches)
        lengths = {settings(self.config, 0, f).seq_len for f in _through(self.config.curriculum.seq_ramp)}
        now, kinds = settings(self.config, 0, 0.0)._replace(micro_batches=ranks.world(), quantized=False), []
        for runs in range(1, self.model.config.loop_runs + 1) if self.config.loop_further_at else (1, ALL_RUNS):
            for length, variant in itertools.product(sorted(lengths), _lengths(batch)):
                kinds.append((variant, now._replace(runs=runs, seq_len=length)))
        for each in (kinds, kinds[::-1])[: 1 + self.graphs]:  # then captured, what takes the most memory first
            for variant, kind in each:
                self.backward(itertools.repeat(variant), kind)
                if self.exchange is not None:
                    self.exchange.wait()
                self.model.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Weights, averages and optimizer moments by name; all processes must call it."""
        from pgolf.train.recorder import state_of

        return state_of(self)

    def _snapshots(self) -> "RunningMean | LastMean | None":
        kind, live = self.config.average, self.average
        if kind in ("ema", "live"):
            return None
        from pgolf.train.snapshots import LastMean, RunningMean

        if kind == "lawa":
            return LastMean(live.live, live.names, self.config.snapshots.last)
        return RunningMean(live.average if kind == "tight_swa" else live.live, live.names)

    def _rounded(self, on: bool) -> contextlib.AbstractContextManager[None]:
        if not on:
            return contextlib.nullcontext()
        from pgolf.train.qat import fake_quantized

        inside = set(map(id, self.model.blocks.parameters()))
        stacks = [stack for stack in self.muon.stacks.values() if id(stack[0]) in inside]
        return fake_quantized(stacks, self.config.qat)


def adam_groups(groups: Mapping[str, Mapping[str, nn.Parameter]], config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: `params` by name, `base_lr`, `weight_decay`; late layers apart where they differ."""

    def late(name: str) -> bool:
        layer = layer_of(name)
        return config.late.layer is not None and layer is not None and layer >= config.late.layer

    found = []
    for name, group, factor in (("embed", config.embed, 1.0), ("scalar", config.scalar, config.late.scalar)):
        for is_late in (False, True):
            params = {key: parameter for key, parameter in groups[name].items() if late(key) == is_late}
            lr = group.lr * (factor if is_late else 1.0)
            if params:
                found.append({"params": params, "lr": lr, "base_lr": lr, "weight_decay": group.weight_decay})
    return found


def _through(ramp: float) -> tuple[float, ...]:
    """A progress in every phase of the sequence-length ramp, and one after it."""
    return (0.0, 0.5 * ramp, 0.9 * ramp, 1.0)


def _lengths(batch: Batch) -> Iterator[Batch]:
    """The batch with as many document boundaries as training will meet: 64, 128, 192 and 256 (PR 1855)."""
    if batch.cu_seqlens is None:
        yield batch
        return
    total = batch.inputs.size(1)
    for entries in range(BUCKET, 4 * BUCKET + 1, BUCKET):
        step = -(-total // (entries - 1))
        yield batch._replace(cu_seqlens=torch.arange(entries).mul(step).clamp_max(total).int())
