"""Late QAT: the grid, the straight-through gradient, and that compiled code really meets other weights."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from random_model import random_model

from pgolf.data.batches import Batch
from pgolf.model.config import ModelConfig
from pgolf.preflight import preflight
from pgolf.train.config import QatConfig, TrainConfig
from pgolf.train.loop import train
from pgolf.train.qat import fake_quantize, fake_quantized
from pgolf.train.schedule import settings
from pgolf.train.trainer import Trainer

VOCAB, LENGTH = 32, 8
MODEL = ModelConfig(
    layers=1, dim=16, heads=2, kv_heads=1, rope_dims=4, mlp_mult=2.0, loop_start=0, loop_end=0, loop_runs=1,
    parallel_from=None, xsa_layers=1,
)  # fmt: skip
QAT = QatConfig(below=0.5, bits=3, least_max=0.0)
CONFIG = TrainConfig(
    steps=6, seconds=None, seq_len=LENGTH, micro_tokens=2 * LENGTH, batch_tokens=4 * LENGTH, warmdown=1.0, qat=QAT
)


def trainer(config=CONFIG):
    return Trainer(random_model(MODEL, VOCAB, LENGTH), config)


def stream():
    generator = torch.Generator().manual_seed(1)
    while True:
        window = torch.randint(VOCAB, (2, LENGTH + 1), generator=generator)
        yield Batch(window[:, :-1].contiguous(), window[:, 1:].contiguous(), None)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("least_max", [0.0, 1.0])
def test_the_grid_entry_by_entry(least_max, symmetric):
    """Scale = max(max |w| / 31, 1 / 31), codes from -32 (PR 401) or -31 (PR 635) to 31."""
    torch.manual_seed(0)
    w = torch.randn(2, 4, 9) * torch.tensor([0.1, 1.0, 3.0, 0.0])[:, None]
    found = fake_quantize(w, QatConfig(least_max=least_max, symmetric=symmetric))
    for b in range(2):
        for i in range(4):
            row = w[b, i].tolist()
            largest = max(max(map(abs, row)), least_max)
            for j, value in enumerate(row):
                scale = largest / 31 if largest else 1.0
                code = min(max(round(value / scale), -31 if symmetric else -32), 31)
                assert found[b, i, j].item() == pytest.approx(code * scale, abs=1e-6)


def test_the_lowest_code_is_used_where_it_may_be():
    """Only rounding can reach -32, for the scale follows the largest magnitude: codes stay in -31 .. 31."""
    w = torch.tensor([[-1.0, 0.5]])
    assert torch.equal(fake_quantize(w, QatConfig()), fake_quantize(w, QatConfig(symmetric=True)))


def test_published_floor_makes_the_grid_of_small_rows_coarse():
    w = torch.linspace(-0.15, 0.15, 100)[None]
    assert len(fake_quantize(w, QatConfig()).unique()) <= 11
    assert len(fake_quantize(w, QatConfig(least_max=0.0)).unique()) == 63


def test_the_gradient_is_the_straight_through_one():
    """Against w + stopgrad(w^ - w) inside the forward pass."""
    t = trainer()
    batches = [next(stream()) for _ in range(2)]
    muon = {id(p) for stack in t.muon.stacks.values() for p in stack}
    params = {name: p.detach().clone().requires_grad_() for name, p in t.model.named_parameters()}
    now = settings(CONFIG, 5, 5 / 6)
    assert now.quantized
    ste = {
        name: p + (fake_quantize(p, QAT) - p).detach() if id(t.model.get_parameter(name)) in muon else p
        for name, p in params.items()
    }
    assert 0 < sum(not torch.equal(ste[name], params[name]) for name in params) < len(params)

    class Losses(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = t.model

        def forward(self, batch):
            return self.model.losses(batch.inputs, batch.targets).mean()

    wrapped = {f"model.{name}": tensor for name, tensor in ste.items()}
    expected = sum(torch.func.functional_call(Losses(), wrapped, (batch,)) for batch in batches) / 2
    expected.backward()
    before = flat(t.model.parameters())
    loss = t.backward(iter(batches), now)
    torch.testing.assert_close(loss, expected.detach())
    for name, p in t.model.named_parameters():
        torch.testing.assert_close(p.grad, params[name].grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(flat(t.model.parameters()), before)  # the bits of the weights are back


def test_the_switch_survives_compilation():
    """One graph, traced with the switch off; with it on it computes with rounded weights, as eager code does."""
    torch._dynamo.reset()
    t, eager = trainer(), trainer()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    t.model.losses = torch.compile(t.model.losses, backend=counter, dynamic=False)
    off = settings(CONFIG, 5, 5 / 6)._replace(quantized=False, micro_batches=1)
    on = off._replace(quantized=True)
    losses, grads, seen = [], [], []
    hook = t.model.blocks[0].mlp.fc.weight
    for now in (off, on, off, on):
        inner = t.model.losses

        def watch(*args, inner=inner):
            seen.append(hook.detach().clone())
            return inner(*args)

        t.model.losses = watch
        losses.append(t.backward(stream(), now).item())
        t.model.losses = inner
        grads.append(flat([p.grad for p in t.model.parameters() if p.grad is not None]))
        reference = eager.backward(stream(), now).item()
        assert losses[-1] == pytest.approx(reference, rel=1e-5)
        torch.testing.assert_close(
            grads[-1], flat([p.grad for p in eager.model.parameters() if p.grad is not None]), rtol=1e-4, atol=1e-6
        )
        for model in (t.model, eager.model):
            model.zero_grad()
    assert counter.frame_count == 1  # off and on run the very same graph
    assert losses[0] == losses[2] != losses[1] == losses[3]
    assert abs(losses[0] - losses[1]) > 1e-4
    assert not torch.allclose(grads[0], grads[1], rtol=1e-2, atol=1e-4)
    assert torch.equal(seen[0], hook)
    assert torch.equal(seen[1], fake_quantize(hook.detach(), QAT))
    torch._dynamo.reset()


def test_a_run_is_quantized_below_the_threshold_and_ends_elsewhere(monkeypatch):
    t, seen = trainer(), []
    backward = t.backward
    monkeypatch.setattr(t, "backward", lambda batches, now: (seen.append(now.quantized), backward(batches, now))[1])
    train(t, stream(), lambda: 0.0)
    assert seen == [False] * 4 + [True] * 2  # 1 - f < .5 from step 4 of 6
    without = trainer(dataclasses.replace(CONFIG, qat=QatConfig()))
    train(without, stream(), lambda: 0.0)
    assert not torch.allclose(flat(t.model.parameters()), flat(without.model.parameters()))


def test_together_with_gptq_it_warns(tmp_path):
    """PR 635: +.16 BPB."""
    path, text = tmp_path / "params.yaml", (Path(__file__).parents[2] / "params.yaml").read_text()
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preflight(path, 512)
    assert text.count("    below: 0.0 ") == 1
    path.write_text(text.replace("    below: 0.0 ", "    below: 0.15 "))
    with pytest.warns(UserWarning, match=r"`train\.qat`.*GPTQ.*0\.16 BPB"):
        preflight(path, 512)


def test_an_error_inside_leaves_the_weights_alone():
    weight = torch.randn(2, 3)
    before = weight.clone()

    def fail():
        with fake_quantized([[weight]], QAT):
            assert not torch.equal(weight, before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(weight, before)
