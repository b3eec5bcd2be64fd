"""What only training has: heads for further tokens, dropout, passes that come one at a time, gates in Muon."""

import dataclasses

import pytest
import torch

from pgolf.data.batches import Batch
from pgolf.model.config import ModelConfig, MultiTokenConfig
from pgolf.model.gpt import GPT
from pgolf.train.config import MuonConfig, QatConfig, TrainConfig
from pgolf.train.loop import train
from pgolf.train.trainer import Trainer

VOCAB, LENGTH = 32, 8
MODEL = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=1, loop_end=1, loop_runs=3,
    parallel_from=None, xsa_layers=1,
)  # fmt: skip
CONFIG = TrainConfig(steps=8, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=2 * LENGTH)


def stream(model=None, seen=None):
    generator = torch.Generator().manual_seed(1)
    while True:
        if seen is not None:
            seen.append((model.runs, model.training))
        window = torch.randint(VOCAB, (2, LENGTH + 1), generator=generator)
        yield Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)


def trainer(model=MODEL, config=CONFIG):
    torch.manual_seed(0)
    built = GPT(model, VOCAB)
    built.prepare(LENGTH)
    return Trainer(built, config)


@pytest.mark.parametrize(
    ("further", "expected"), [((), [1, 1, 1, 1, 3, 3, 3, 3]), ((0.75,), [1, 1, 1, 1, 2, 2, 3, 3])], ids=str
)
def test_passes_of_the_recurrent_segment(further, expected):
    t, seen = trainer(config=dataclasses.replace(CONFIG, loop_at=0.5, loop_further_at=further)), []
    train(t, stream(t.model, seen), lambda: 0.0)
    assert seen == [(runs, True) for runs in expected]
    assert t.model.looped
    assert not t.model.training


def test_heads_for_further_tokens_train_and_are_left_out():
    model = dataclasses.replace(MODEL, multi_token=MultiTokenConfig(heads=2))
    config = dataclasses.replace(CONFIG, ema_candidates=(0.5,), qat=QatConfig(last=0.5))
    t = trainer(model, config)
    heads = [name for name, _ in t.model.named_parameters() if name.startswith("mtp_heads")]
    assert len(heads) == 2
    assert {f"model.{name}" for name in heads} <= set(t.state())
    before = [t.model.get_parameter(name).detach().clone() for name in heads]
    live = [t.model.get_parameter(name) for name in heads]
    train(t, stream(), lambda: 0.0)
    assert not any(torch.equal(a, b) for a, b in zip(before, live, strict=True))
    names = [name for name, _ in t.model.named_parameters()]
    assert not [name for name in names if "mtp" in name]
    assert list(t.candidate_averages()) == [f"0.5/{name}" for name in names]


def test_gates_go_to_muon_where_they_are_named():
    model = dataclasses.replace(MODEL, attn_gate="sparse")
    for also, expected in (((), False), (("gates",), True)):
        t = trainer(model, dataclasses.replace(CONFIG, muon=MuonConfig(also=also)))
        gate = t.model.get_parameter("blocks.0.attn.attn_gate_w")
        assert any(gate is each for stack in t.muon.stacks.values() for each in stack) == expected
        assert ("blocks.0.attn.attn_gate_w" in t.adam_names) != expected
