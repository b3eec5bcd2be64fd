"""The look at a model's gates: every form against its formula, and nothing but a look."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgolf.data.batches import Batch
from pgolf.data.shards import BOS, shard_name, write_shard
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.train.config import TrainConfig
from pgolf.train.loop import train
from pgolf.train.openings import observe, observer
from pgolf.train.trace import EVERY, Trace
from pgolf.train.trainer import Trainer

VOCAB, LENGTH = 64, 16
MODEL = ModelConfig(
    layers=3, dim=32, heads=2, kv_heads=1, rope_dims=4, mlp_mult=1.0, loop_start=1, loop_end=1, loop_runs=2,
    parallel_from=2, xsa_layers=3, gate_window=8,
)  # fmt: skip
IDS = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))
FORMS = {
    "per_head": lambda a, n: torch.sigmoid(F.linear(n, a.attn_gate_w, a.attn_gate_b)),
    "dense": lambda a, n: torch.sigmoid(F.linear(n, a.attn_gate_w)),
    "sparse": lambda a, n: torch.sigmoid(0.5 * F.linear(n[..., :8], a.attn_gate_w)),
    "window": lambda a, n: 2 * torch.sigmoid(F.linear(n[..., :8], a.attn_gate_w)),
    "headwise": lambda a, n: torch.sigmoid(a.c_q(n)[..., -2:]),
    "elementwise": lambda a, n: torch.sigmoid(a.c_q(n)[..., 32:]).unflatten(-1, (2, 16)).mean(-1),
}


def built(**changes) -> GPT:
    """A model with every parameter random."""
    generator = torch.Generator().manual_seed(0)
    model = GPT(dataclasses.replace(MODEL, **changes), VOCAB)
    model.prepare(LENGTH)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def inputs(module: torch.nn.Module, model: GPT) -> torch.Tensor:
    """What a module of the plain model reads, all its runs one after the other [B, T, d]."""
    seen = []
    with torch.no_grad(), _hooked(module, lambda _, arguments: seen.append(arguments[0])):
        model.hidden(IDS)
    return torch.cat(seen)


def _hooked(module, hook):
    return module.register_forward_pre_hook(hook)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_attention_gate_shows_what_it_multiplies_by(form: str) -> None:
    model = built(attn_gate=form, attn_gate_scale=0.5)
    found = observe(model, IDS)
    expected = [FORMS[form](block.attn, inputs(block.attn, model)).mean((0, 1)) for block in model.blocks]
    torch.testing.assert_close(found["attn_gate"], torch.stack(expected))


def test_gates_beyond_attention_and_parameters() -> None:
    model = built(mlp_gate=True, token_gate=True, smear="window")
    found = observe(model, IDS)
    for layer, block in enumerate(model.blocks):
        fed = inputs(block.mlp, model)[..., :8]
        torch.testing.assert_close(found["mlp_gate"][layer], 2 * torch.sigmoid(fed @ block.mlp_gate_w.T).mean((0, 1)))
        mixed = (
            inputs(block, model) * block.resid_mix[0]
            + model.embed(IDS).repeat(1 + (layer == 1), 1, 1) * (block.resid_mix[1])
        )
        expected = torch.sigmoid(mixed @ block.dtg_gate_w.T + block.dtg_gate_b).mean()
        torch.testing.assert_close(found["token_gate"][layer], expected)
        assert found["q_gain"][layer].tolist() == block.attn.q_gain.tolist()
    assert found["smear"].tolist() == model.smear_lambda.tolist()
    torch.testing.assert_close(found["skip_gate"], torch.sigmoid(model.skip_gates).mean(1))
    assert set(observe(built(skips="plain"), IDS)) == {"q_gain"}
    by_channel = built(smear="vector")
    assert observe(by_channel, IDS)["smear"].item() == pytest.approx(by_channel.smear.gate.sigmoid().mean().item())


def test_a_look_leaves_no_mark_and_passes_by_what_hides_the_model() -> None:
    model = built(attn_gate="sparse", mlp_gate=True)
    plain = observe(model, IDS)
    before = [dict(vars(module)) for module in model.modules()]
    hidden = model.blocks[0].forward = lambda *_: pytest.fail("a look must not run compiled code")
    found = observe(model, IDS)
    assert vars(model.blocks[0]).pop("forward") is hidden
    assert [dict(vars(module)) for module in model.modules()] == before
    assert all(torch.equal(found[name], series) for name, series in plain.items())


def test_a_run_that_is_looked_at_is_the_run_that_is_not(tmp_path) -> None:
    text = np.array([BOS, *range(2, 40)], np.uint16)
    write_shard(tmp_path / shard_name("train", 0), text)
    config = TrainConfig(steps=6, seconds=None, seq_len=LENGTH, micro_tokens=LENGTH, batch_tokens=LENGTH, trace_every=1)
    looks = {}

    def run(look):
        torch.manual_seed(0)
        model = GPT(dataclasses.replace(MODEL, attn_gate="sparse"), VOCAB)
        model.prepare(LENGTH)
        generator = torch.Generator().manual_seed(2)
        windows = (torch.randint(VOCAB, (1, LENGTH + 1), generator=generator) for _ in range(6))
        done = train(Trainer(model, config), (Batch(w[:, :-1], w[:, 1:], None) for w in windows), lambda: 0.0,
                     observe=look)  # fmt: skip
        return model.state_dict(), done.trace

    look = observer([tmp_path / shard_name("train", 0)], LENGTH, torch.device("cpu"))
    assert look.keywords["ids"].tolist() == [text[:LENGTH].tolist()], "no row is longer than the tables"

    def noted(model):
        looks[len(looks)] = look(model)
        return looks[len(looks) - 1]

    (plain, short), (seen, trace) = run(None), run(noted)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert set(trace) - set(short) == {"observed", "attn_gate", "q_gain", "skip_gate"}
    assert len(trace["observed"]) == len(looks) == 2
    assert torch.equal(trace["attn_gate"], torch.stack([each["attn_gate"] for each in looks.values()]))
    assert (trace["attn_gate"][0] == 0.5).all(), "a sparse gate starts half open, at the first step that is looked at"


def test_looks_go_on_after_an_interruption() -> None:
    model, look = built(), partial(observe, ids=IDS)
    trace = Trace(model, observe=look)
    for step in range(2 * EVERY):
        trace.entry(step, float(step), 1.0, torch.zeros(()))
        trace = Trace(model, trace.tensors(), look)
    assert trace.tensors()["observed"].tolist() == [0.0, float(EVERY)]
