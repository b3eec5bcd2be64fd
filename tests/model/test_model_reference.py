"""The whole model against a slow float64 twin written from the specification: loops over layers and heads."""

import math

import pytest
import torch

from pgolf.model.attention import Segments
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

VOCAB, LENGTH, BOS = 64, 14, 1
DOCUMENTS = (0, 5, 6)
EPS = 2.0**-23

SMALL = {"dim": 32, "heads": 4, "kv_heads": 2, "rope_dims": 4, "softcap": 3.0, "mlp_mult": 2.0, "leaky_slope": 0.3}
CONFIGS = {
    "odd virtual list, parallel tail": ModelConfig(
        layers=6, loop_start=2, loop_end=3, loop_runs=2, parallel_from=4, xsa_layers=2, **SMALL
    ),
    "three runs, one layer": ModelConfig(
        layers=3, loop_start=1, loop_end=1, loop_runs=3, parallel_from=None, xsa_layers=3, **SMALL
    ),
    "all parallel, no recurrence": ModelConfig(
        layers=4, loop_runs=1, parallel_from=0, xsa_layers=0, ln_scale=False, **SMALL
    ),
    "two lanes, smear and sparse gate": ModelConfig(
        layers=6,
        loop_start=2,
        loop_end=3,
        loop_runs=2,
        parallel="lanes",
        parallel_from=4,
        xsa_layers=6,
        attn_gate="sparse",
        attn_gate_scale=0.5,
        smear="window",
        gate_window=5,
        **SMALL,
    ),
    "lanes from the first decoder layer, no recurrence": ModelConfig(
        layers=4, loop_runs=1, parallel="lanes", parallel_from=2, xsa_layers=4, smear="window", **SMALL
    ),
    "the layers of PR 1855": ModelConfig(
        dim=32,
        heads=4,
        kv_heads=2,
        rope_dims=6,
        softcap=2.0,
        mlp_mult=1.0,
        qk_gain=5.0,
        parallel="lanes",
        parallel_from=8,
        attn_gate="sparse",
        attn_gate_scale=0.5,
        smear="window",
    ),
    "the layers of PR 1493": ModelConfig(
        dim=32, heads=4, kv_heads=2, rope_dims=6, softcap=2.0, mlp_mult=1.0, rope_base=500.0
    ),
}


def randomise(model: GPT) -> None:
    """Random values in every parameter, so that no identity at initialisation hides a wrong wire."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter.data)
        if name.endswith("resid_mix"):
            noise = torch.tensor([[0.8], [0.4]]) + 0.3 * noise
        elif name.endswith("scale") or name == "skip_weights":
            noise = 1 + 0.3 * noise
        elif name.endswith("q_gain"):
            noise = 2 + 0.5 * noise
        elif name == "tok_emb.weight":
            noise = 0.4 * noise
        elif "lambda" in name:
            noise = 0.9 + 0.3 * noise
        elif name != "skip_gates":
            noise = noise / math.sqrt(parameter.size(1))
        parameter.data.copy_(noise)


class Twin:
    """Losses of one row from the weights alone; `documents` are the starts that attention must not look across."""

    def __init__(self, config, weights):
        self.c, self.w = config, weights

    def losses(self, ids, targets, looped, documents):
        c, w = self.c, self.w
        x = rms(self.smeared(torch.stack([w["tok_emb.weight"][i] for i in ids]), ids))
        x0 = x
        lanes = None
        first, second = self.halves(looped)
        rows = min(map(len, self.halves(looped=True)))
        stack = []
        for layer in first:
            x = self.block(layer, x, x0, documents)
            stack.append(x)
        for j, layer in enumerate(second):
            if c.parallel == "lanes" and layer >= c.parallel_from and lanes is None:
                lanes = [x, x]
            if stack and j < rows:
                gate = 1 / (1 + torch.exp(-w["skip_gates"][j]))
                carried = x if lanes is None else lanes[0]
                skipped = gate * carried + (1 - gate) * (w["skip_weights"][j] * stack.pop())
                if lanes is None:
                    x = skipped
                else:
                    lanes[0] = skipped
            if lanes is None:
                x = self.block(layer, x, x0, documents)
            else:
                lanes = self.two_lanes(layer, lanes, x0, documents)
        h = rms(x if lanes is None else (lanes[0] + lanes[1]) / 2)
        logits = c.softcap * torch.tanh(h @ w["tok_emb.weight"].T / c.softcap)
        values = [torch.log(torch.exp(row).sum()) - row[target] for row, target in zip(logits, targets, strict=True)]
        return logits, torch.stack(values)

    def halves(self, looped):
        c = self.c
        runs = c.loop_runs if looped else 1
        order = []
        for layer in range(c.layers):
            order.append(layer)
            if runs > 1 and layer == c.loop_end:
                order += list(range(c.loop_start, c.loop_end + 1)) * (runs - 1)
        return order[: len(order) // 2], order[len(order) // 2 :]

    def smeared(self, x, ids):
        if self.c.smear == "none":
            return x
        out = [x[0]]
        for t in range(1, len(x)):
            logit = sum(self.w["smear_gate.weight"][0, c] * x[t, c] for c in range(self.c.gate_window))
            share = self.w["smear_lambda"][0] / (1 + torch.exp(-logit))
            out.append(x[t] if ids[t] == BOS else x[t] + share * x[t - 1])
        return torch.stack(out)

    def two_lanes(self, i, lanes, x0, documents):
        w = self.w
        s = 1 / math.sqrt(i + 1)
        mix = w[f"blocks.{i}.resid_mix"]
        a = w[f"blocks.{i}.attn_scale"] * self.attention(i, rms(mix[0] * lanes[0] + mix[1] * x0) * s, documents)
        m = w[f"blocks.{i}.mlp_scale"] * self.mlp(i, rms(lanes[1]) * s)
        post, carry = w["parallel_post_lambdas"][i], w["parallel_resid_lambdas"][i]
        return [carry[lane] * lanes[lane] + post[0, lane] * a + post[1, lane] * m for lane in (0, 1)]

    def block(self, i, x, x0, documents):
        c, w = self.c, self.w
        s = 1 / math.sqrt(i + 1) if c.ln_scale else 1.0
        mix = w[f"blocks.{i}.resid_mix"]
        x_in = mix[0] * x + mix[1] * x0
        a = w[f"blocks.{i}.attn_scale"] * self.attention(i, rms(x_in) * s, documents)
        if c.parallel == "gptj" and c.parallel_from is not None and i >= c.parallel_from:
            return x_in + a + w[f"blocks.{i}.mlp_scale"] * self.mlp(i, rms(x_in) * s)
        x1 = x_in + a
        return x1 + w[f"blocks.{i}.mlp_scale"] * self.mlp(i, rms(x1) * s)

    def mlp(self, i, u):
        p = u @ self.w[f"blocks.{i}.mlp.fc.weight"].T
        f = torch.where(p > 0, p**2, (self.c.leaky_slope * p) ** 2)
        return f @ self.w[f"blocks.{i}.mlp.proj.weight"].T

    def attention(self, i, n, documents):
        c, w = self.c, self.w
        size, group = c.dim // c.heads, c.heads // c.kv_heads
        wq, wk, wv = (w[f"blocks.{i}.attn.c_{name}.weight"] for name in "qkv")
        heads = []
        for h in range(c.heads):
            kv = h // group
            q = self.rotate(rms(n @ wq[h * size : (h + 1) * size].T)) * w[f"blocks.{i}.attn.q_gain"][h]
            k = self.rotate(rms(n @ wk[kv * size : (kv + 1) * size].T))
            v = n @ wv[kv * size : (kv + 1) * size].T
            weights = torch.exp(q @ k.T / math.sqrt(size))
            starts = [max(d for d in documents if d <= t) for t in range(len(n))]
            seen = torch.tensor([[start <= j <= t for j in range(len(n))] for t, start in enumerate(starts)])
            weights = weights * seen
            y = (weights / weights.sum(1, keepdim=True)) @ v
            if i >= c.layers - c.xsa_layers:
                unit = v / torch.sqrt((v**2).sum(1, keepdim=True))
                y = y - (y * unit).sum(1, keepdim=True) * unit
            if c.attn_gate == "sparse":
                gate = w[f"blocks.{i}.attn.attn_gate_w"][h]
                y = y / (1 + torch.exp(-c.attn_gate_scale * (n[:, : c.gate_window] @ gate)))[:, None]
            heads.append(y)
        return torch.cat(heads, dim=1) @ w[f"blocks.{i}.attn.proj.weight"].T

    def rotate(self, x):
        half = self.c.rope_dims // 2
        columns = list(x.unbind(1))
        for k in range(half):
            angle = torch.arange(len(x), dtype=torch.float64) * self.c.rope_base ** (-2 * k / self.c.rope_dims)
            a, b = x[:, k], x[:, k + half]
            columns[k] = a * torch.cos(angle) + b * torch.sin(angle)
            columns[k + half] = -a * torch.sin(angle) + b * torch.cos(angle)
        return torch.stack(columns, dim=1)


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("looped", [False, True], ids=["plain", "looped"])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_losses_and_gradients_equal_the_twin(name, looped, packed):
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = GPT(config, VOCAB)
    randomise(model)
    model.prepare(LENGTH)
    model.looped = looped
    ids, targets = torch.randint(BOS + 1, VOCAB, (2, 1, LENGTH))
    ids[0, DOCUMENTS] = BOS  # dense rows cross documents, but the smear does not
    documents = DOCUMENTS if packed else [0]
    segments = Segments(torch.tensor([*DOCUMENTS, *[LENGTH] * 3], dtype=torch.int32), 8) if packed else None

    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    logits, losses = Twin(config, weights).losses(ids[0], targets[0], looped, documents)
    losses.mean().backward()
    mine = model.losses(ids, targets, segments)
    mine.mean().backward()

    assert losses.std() > 0.1  # otherwise the comparison is empty
    assert mine.dtype == torch.float32
    assert mine.shape == targets.shape
    torch.testing.assert_close(model(ids, segments)[0].double(), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(mine[0].double(), losses, rtol=0, atol=1e-4)
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        wanted = torch.zeros_like(expected) if expected is None else expected
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-4 * (1 + wanted.abs().max().item()))


@pytest.mark.parametrize("name", ["odd virtual list, parallel tail", "two lanes, smear and sparse gate"])
def test_every_parameter_matters_in_the_comparison(name):
    """With recurrence, each tensor has a gradient above the tolerance, so an error in its use would show."""
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = GPT(config, VOCAB)
    randomise(model)
    model.prepare(LENGTH)
    ids, targets = torch.randint(VOCAB, (2, 1, LENGTH))
    model.losses(ids, targets).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-3, name
