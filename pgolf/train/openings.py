"""How far every gate of a model is open: a look at it while it trains, which a submission ships without.

    attn_gate [L, H], mlp_gate [L, H], token_gate [L]   mean over tokens and channels of what the gate multiplies by
    skip_gate [skips]                                   mean over channels of sigmoid(skip_gates), by decoder position
    smear [1]                                           lambda, or the mean gate of the form with a gate per channel
    q_gain [L, H]                                       query gain

L layers, H heads (groups of the MLP gate). A gate is its own yardstick: on ones it gives what it multiplies by,
whatever its form. A layer that runs more than once has the mean of its runs; gates that a model lacks are left out.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pgolf.data.shards import read_shard
from pgolf.model.attention import using
from pgolf.model.gpt import GPT
from pgolf.train.trace import Observe

TOKENS = 256
"""Of training text, that gates are looked at with."""

Note = Callable[[Tensor], None]
Gate = Callable[..., Tensor]


def observer(shards: Sequence[Path], longest: int, device: torch.device) -> Observe:
    """`observe` on the beginning of the training text, in a row of at most `longest` tokens."""
    values = read_shard(shards[0])[: min(TOKENS, longest)]
    return partial(observe, ids=torch.from_numpy(values.astype("int64"))[None].to(device))


@torch.no_grad()
def observe(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """Every series of the module's list, float32; ids [B, T]. Nothing in the model, and no random state, changes."""
    found = {"q_gain": torch.stack([block.attn.q_gain for block in model.blocks])}  # type: ignore[union-attr, misc]
    if model.skip_gates is not None:
        found["skip_gate"] = torch.sigmoid(model.skip_gates).mean(1)
    if model.window_smear is not None:
        found["smear"] = model.smear_lambda
    elif model.smear is not None:
        found["smear"] = torch.sigmoid(model.smear.gate).mean()[None]
    return found | openings(model, ids)


@torch.no_grad()
def openings(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """The gates that look at their input, on ids [B, T]; no pass where there are none."""
    seen: dict[str, list[list[Tensor]]] = {}
    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            for kind, owner, name, probe in (
                ("attn_gate", cast(nn.Module, block.attn), "gate", _attention),
                ("mlp_gate", block, "mlp_gate", _mlp),
                ("token_gate", block, "token_gate", _token),
            ):
                if (gate := getattr(owner, name)) is not None:
                    notes = seen.setdefault(kind, [[] for _ in model.blocks])[layer]
                    stack.enter_context(_replaced(owner, name, probe(gate, notes.append)))
        if seen:
            stack.enter_context(_as_written(model))
            stack.enter_context(using("sdpa"))  # the only back end that has no kernel to build for a short row
            model.hidden(ids)
    return {kind: torch.stack([torch.stack(each).mean(0) for each in rows]) for kind, rows in seen.items()}


def _attention(gate: Gate, note: Note) -> Gate:
    def look(attention: nn.Module, y: Tensor, *seen: Tensor) -> Tensor:
        note(gate(attention, torch.ones_like(y, dtype=torch.float32), *seen).mean((0, 1, 3)))
        return gate(attention, y, *seen)

    return look


def _mlp(gate: Gate, note: Note) -> Gate:
    def look(m: Tensor, u: Tensor, weight: Tensor) -> Tensor:
        opened = gate(torch.ones_like(m, dtype=torch.float32), u, weight)
        note(opened.view(*m.shape[:-1], weight.size(0), -1).mean((0, 1, 3)))
        return gate(m, u, weight)

    return look


def _token(gate: Gate, note: Note) -> Gate:
    def look(x: Tensor, out: Tensor, *weights: Tensor) -> Tensor:
        before = x.float()
        note((gate(before, before + 1, *weights) - before).mean())
        return gate(x, out, *weights)

    return look


@contextlib.contextmanager
def _replaced(owner: nn.Module, name: str, value: Gate) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _as_written(model: GPT) -> Iterator[None]:
    """Without what hides functions of a class in place: compiled code and kernels do not run probes."""
    hidden = [
        (vars(module), name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if callable(value) and hasattr(type(module), name)
    ]
    for place, name, _ in hidden:
        del place[name]
    try:
        yield
    finally:
        for place, name, value in hidden:
            place[name] = value
