"""Kernels on a CUDA device against float32 on the CPU or per-segment attention: `pytest -m gpu`."""

import math

import pytest
import torch

from pgolf.model import attention
from pgolf.model.attention import Segments, attend, backend
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

pytestmark = pytest.mark.gpu

BOUNDS = [0, 1, 18, 146, 146, 700, 1212]  # a single token, a repeated start, lengths off the kernels' tiles
LONGEST = 554


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def segments(device, bounds=BOUNDS):
    padded = bounds + [bounds[-1]] * (64 - len(bounds))
    return Segments(torch.tensor(padded, dtype=torch.int32, device=device), LONGEST)


def reference(q, k, v, upstream, bounds):
    """float32 on the CPU with explicit masks: output and gradients."""
    q, k, v = (tensor.detach().float().cpu().requires_grad_() for tensor in (q, k, v))
    length, group = q.size(1), q.size(2) // k.size(2)
    document = torch.zeros(length, dtype=torch.long)
    for start in bounds[1:-1]:
        document[start:] += 1
    allowed = (document[:, None] == document) & torch.ones(length, length, dtype=torch.bool).tril()
    heads = []
    for h in range(q.size(2)):
        scores = q[0, :, h] @ k[0, :, h // group].T / math.sqrt(q.size(3))
        heads.append(scores.masked_fill(~allowed, -math.inf).softmax(-1) @ v[0, :, h // group])
    y = torch.stack(heads, 1)[None]
    y.backward(upstream.float().cpu())
    return y, q.grad, k.grad, v.grad


def errors(function, inputs, upstream, expected):
    """Largest and root mean square error of output and gradients, relative to the root mean square expected."""
    q, k, v = (tensor.detach().clone().requires_grad_() for tensor in inputs)
    y = function(q, k, v)
    assert y.dtype == q.dtype
    y.backward(upstream)
    found = []
    for got, want in zip((y, q.grad, k.grad, v.grad), expected, strict=True):
        scale = want.detach().square().mean().sqrt()
        difference = (got.detach().float().cpu() - want.detach()) / scale
        found.append((difference.abs().max().item(), difference.square().mean().sqrt().item()))
    return found


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 4), (4, 4), (6, 1)])
def test_varlen_is_as_close_to_float32_as_a_call_per_segment(device, heads, kv_heads):
    assert backend(device, torch.bfloat16) == "varlen"
    torch.manual_seed(0)
    length = BOUNDS[-1]
    inputs = [torch.randn(1, length, n, 64, device=device).bfloat16() for n in (heads, kv_heads, kv_heads)]
    upstream = torch.randn(1, length, heads, 64, device=device).bfloat16()
    expected = reference(*inputs, upstream, BOUNDS)
    packed = segments(device)
    fast = errors(lambda q, k, v: attend(q, k, v, packed), inputs, upstream, expected)
    slow = errors(lambda q, k, v: attention._per_segment(q, k, v, packed), inputs, upstream, expected)
    for name, (fast_max, fast_rms), (slow_max, slow_rms) in zip(("y", "dq", "dk", "dv"), fast, slow, strict=True):
        assert fast_rms < 0.01, (name, fast_rms, slow_rms)  # bfloat16 has 8 bits of mantissa: 0.004
        assert fast_rms < 2 * slow_rms + 1e-3, (name, fast_rms, slow_rms)
        assert fast_max < 3 * slow_max + 0.02, (name, fast_max, slow_max)


def test_varlen_documents_do_not_see_each_other(device):
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, BOUNDS[-1], n, 64, device=device).bfloat16() for n in (8, 4, 4))
    packed = segments(device)
    before = attend(q, k, v, packed)
    k2, v2 = k.clone(), v.clone()
    k2[:, :146] += 1
    v2[:, :146] -= 1
    after = attend(q, k2, v2, packed)
    assert torch.equal(before[:, 146:], after[:, 146:])
    assert not torch.equal(before[:, :146], after[:, :146])


@pytest.mark.parametrize("kv_heads", [8, 4])
def test_dense_equals_float32(device, kv_heads):
    torch.manual_seed(2)
    length = 300
    inputs = [torch.randn(1, length, n, 64, device=device).bfloat16() for n in (8, kv_heads, kv_heads)]
    upstream = torch.randn(1, length, 8, 64, device=device).bfloat16()
    expected = reference(*inputs, upstream, [0, length])
    for _, error in errors(attend, inputs, upstream, expected):
        assert error < 0.01


def test_float32_on_the_device_takes_the_call_per_segment(device):
    assert backend(device, torch.float32) == "sdpa"
    torch.manual_seed(3)
    inputs = [torch.randn(1, BOUNDS[-1], n, 64, device=device) for n in (8, 4, 4)]
    upstream = torch.randn(1, BOUNDS[-1], 8, 64, device=device)
    expected = reference(*inputs, upstream, BOUNDS)
    packed = segments(device)
    for _, error in errors(lambda q, k, v: attend(q, k, v, packed), inputs, upstream, expected):
        assert error < 2e-3  # TF32 products, where they are allowed


MODEL = ModelConfig(layers=6, dim=256, heads=4, kv_heads=2, loop_start=2, loop_end=3, parallel_from=4, xsa_layers=6)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("looped", [False, True], ids=["plain", "looped"])
def test_bfloat16_losses_are_close_to_float32_on_the_cpu(device, packed, looped):
    torch.manual_seed(4)
    vocab, length = 512, BOUNDS[-1]
    exact = GPT(MODEL, vocab)
    with torch.no_grad():
        exact.tok_emb.weight.mul_(5)
        for name, parameter in exact.named_parameters():
            if name.endswith("proj.weight"):
                parameter.normal_(std=1.5 / math.sqrt(parameter.size(1)))
    fast = GPT(MODEL, vocab, torch.bfloat16)
    fast.load_state_dict(exact.state_dict())
    fast.to(device)
    ids, targets = torch.randint(vocab, (2, 1, length))
    losses = []
    for model, where in ((exact, torch.device("cpu")), (fast, device)):
        model.looped = looped
        model.prepare(length)
        with torch.no_grad():
            boundaries = segments(where) if packed else None
            losses.append(model.losses(ids.to(where), targets.to(where), boundaries).cpu())
    assert losses[1].dtype == torch.float32
    assert losses[0].std() > 0.3  # otherwise there is nothing to compare
    assert (losses[0].mean() - losses[1].mean()).abs() < 0.003
    assert (losses[0] - losses[1]).square().mean().sqrt() < 0.03
