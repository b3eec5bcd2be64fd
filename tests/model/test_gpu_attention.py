"""Every attention back end present on a CUDA device against float64: `pytest -m gpu`."""

import itertools
import math
import random
import secrets

import pytest
import torch

from pgolf.model import attention, flash4, sdpa
from pgolf.model.attention import Segments, attend, backend, present, using
from pgolf.model.attention_gradient import attend_with_gradient, gives_sums
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT

pytestmark = pytest.mark.gpu

BOUNDS = [0, 1, 18, 146, 146, 700, 1212]  # a single token, a repeated start, lengths off the kernels' tiles
LONGEST = 554
BACKENDS = ["fa4", "fa3", "fa2", "varlen", "sdpa"]


@pytest.fixture
def device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    seed = secrets.randbits(31)
    print(f"seed {seed}")  # shown when the test fails
    torch.manual_seed(seed)
    random.seed(seed)
    return torch.device("cuda")


@pytest.fixture(params=BACKENDS)
def name(request, device):
    if request.param not in present(device, torch.bfloat16, 64):
        pytest.skip(f"{request.param} is not here")
    return request.param


def forced(name, device, head_dim=64, packed=True):
    if name not in present(device, torch.bfloat16, head_dim, packed):
        pytest.skip(f"{name} cannot do this here")
    return using(name)


def segments(device, bounds=BOUNDS, longest=LONGEST):
    padded = bounds + [bounds[-1]] * (-len(bounds) % 64)
    return Segments(torch.tensor(padded, dtype=torch.int32, device=device), longest)


def random_inputs(device, length, heads=8, kv_heads=4, size=64, rows=1, dtype=torch.bfloat16):
    q, k, v, dy = (
        torch.randn(rows, length, n, size, device=device).to(dtype) for n in (heads, kv_heads, kv_heads, heads)
    )
    return (q, k, v), dy


def one_document(q, k, v, dy):
    """Output and gradients of causal attention by explicit scores in float64; q [L, H, D]."""
    q, k, v = (tensor.double().requires_grad_() for tensor in (q, k, v))
    length, heads, size = q.shape
    kv_head = torch.arange(heads, device=q.device) // (heads // k.size(1))
    scores = torch.einsum("ihd,jhd->hij", q, k[:, kv_head]) / math.sqrt(size)
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    y = torch.einsum("hij,jhd->ihd", scores.masked_fill(future, -math.inf).softmax(-1), v[:, kv_head])
    return y.detach(), *torch.autograd.grad(y, (q, k, v), dy.double())


def reference(inputs, dy, bounds):
    """Documents of the first row one at a time: y, dq, dk, dv, each [1, T, heads, D] in float64."""
    rows = [tensor[0] for tensor in (*inputs, dy)]
    parts = [one_document(*(row[a:b] for row in rows)) for a, b in itertools.pairwise(bounds) if b > a]
    return [torch.cat(found)[None] for found in zip(*parts, strict=True)]


def results(function, inputs, dy):
    """Output and gradients of q, k and v, without the seam's help."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    assert y.dtype == inputs[0].dtype
    assert y.shape == inputs[0].shape
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def check(function, inputs, dy, expected, plain):
    """As close to float64 as bfloat16 allows, and no worse than the plain computation in the same dtype."""
    for what, got, other, want in zip(
        ("y", "dq", "dk", "dv"), results(function, inputs, dy), results(plain, inputs, dy), expected, strict=True
    ):
        scale = want.square().mean().sqrt().clamp(min=0.02)  # nothing depends on a single key: its gradient is 0
        fast, slow = ((tensor.double() - want) / scale for tensor in (got, other))
        fast_rms, slow_rms = fast.square().mean().sqrt().item(), slow.square().mean().sqrt().item()
        assert fast_rms < 0.01, (what, fast_rms, slow_rms)  # bfloat16 has 8 bits of mantissa: 0.004
        assert fast_rms < 2 * slow_rms + 1e-3, (what, fast_rms, slow_rms)
        assert fast.abs().max() < 3 * slow.abs().max() + 0.02, (what, fast.abs().max(), slow.abs().max())


def by_segment(packed):
    return lambda q, k, v: sdpa.per_segment(q, k, v, packed.cu_seqlens)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 4, 64), (4, 4, 64), (6, 1, 64), (8, 4, 128)])
def test_packed_rows_equal_float64(device, name, heads, kv_heads, size):
    inputs, dy = random_inputs(device, BOUNDS[-1], heads, kv_heads, size)
    packed = segments(device)
    with forced(name, device, size):
        check(lambda *qkv: attend(*qkv, packed), inputs, dy, reference(inputs, dy, BOUNDS), by_segment(packed))


def test_a_training_row_equals_float64(device, name):
    """98,304 tokens of documents up to 2048, among them many of a few tokens."""
    total, bounds = 98_304, [0]
    while bounds[-1] < total:
        bounds.append(min(total, bounds[-1] + min(2048, 1 + int(random.expovariate(1 / 900)))))
    inputs, dy = random_inputs(device, total)
    packed = segments(device, bounds, 2048)
    with forced(name, device):
        check(lambda *qkv: attend(*qkv, packed), inputs, dy, reference(inputs, dy, bounds), by_segment(packed))


def test_many_short_documents_equal_float64(device, name):
    """Above 256 segments FlashAttention-4 finds them another way."""
    lengths = [random.randint(1, 16) for _ in range(500)]
    bounds = list(itertools.accumulate(lengths, initial=0))
    inputs, dy = random_inputs(device, bounds[-1])
    packed = segments(device, bounds, 2048)
    with forced(name, device):
        check(lambda *qkv: attend(*qkv, packed), inputs, dy, reference(inputs, dy, bounds), by_segment(packed))


@pytest.mark.parametrize(
    ("kv_heads", "size", "length"), [(8, 64, 300), (4, 64, 300), (4, 128, 300), (4, 64, 40), (4, 64, 1)]
)
def test_dense_rows_equal_float64(device, name, kv_heads, size, length):
    inputs, dy = random_inputs(device, length, 8, kv_heads, size, rows=3)
    expected = [reference([t[r : r + 1] for t in inputs], dy[r : r + 1], [0, length]) for r in range(3)]
    with forced(name, device, size, packed=False):
        check(attend, inputs, dy, [torch.cat(rows) for rows in zip(*expected, strict=True)], sdpa.dense)


def test_slices_of_one_projection_equal_float64(device, name):
    fused = torch.randn(1, BOUNDS[-1], 16, 64, device=device).bfloat16()
    dy = torch.ones((), device=device, dtype=torch.bfloat16).expand(1, BOUNDS[-1], 8, 64)  # the gradient of a sum
    inputs, packed = fused.split([8, 4, 4], dim=2), segments(device)
    expected = reference(inputs, dy, BOUNDS)
    with forced(name, device):
        fused.requires_grad_()
        y = attend(*fused.split([8, 4, 4], dim=2), packed)
        y.sum().backward()
    for got, want in ((y.detach(), expected[0]), (fused.grad, torch.cat(expected[1:], dim=2))):
        assert (got.double() - want).square().mean().sqrt() < 0.01 * want.square().mean().sqrt()


@pytest.mark.parametrize(("heads", "kv_heads", "packed"), [(8, 4, True), (4, 1, True), (8, 4, False), (6, 2, False)])
def test_gradients_in_parts_equal_float64(device, name, heads, kv_heads, packed):
    """Of slices of wider tensors, as blocks have them."""
    (q, k, v), dy = random_inputs(device, BOUNDS[-1], heads + kv_heads, kv_heads)
    q, k, dy = q[:, :, :heads], q[:, :, heads:], dy[:, :, :heads].contiguous()
    with forced(name, device, packed=packed):
        y, gradient = attend_with_gradient(q, k, v, segments(device) if packed else None)
        dq, dk, dv = gradient(dy)
    expected = reference((q, k, v), dy, BOUNDS if packed else [0, BOUNDS[-1]])
    for got, want in zip((y, dq, dk.float().sum(0), dv.float().sum(0)), expected, strict=True):
        assert (got.double() - want).square().mean().sqrt() < 0.01 * want.square().mean().sqrt()


def in_order(sums, rows):
    """dq / scale [T, Hkv, 64] of one part, from the registers of matrix products."""
    heads, token_of = len(sums), rows.token_of
    laid = sums.view(heads, -1, 2, 8, 4, 8, 4, 2, 2)  # tile, half, columns / 8, warp, row, pair, row / 8, element
    dense = laid.permute(0, 1, 2, 4, 7, 5, 3, 6, 8).reshape(heads, len(token_of), 64)
    found = dense.new_full((int(token_of.max()) + 1, heads, 64), math.nan)
    found[token_of[token_of >= 0].long()] = dense[:, token_of >= 0].transpose(0, 1)
    return found


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 4), (4, 4), (6, 1)])
@pytest.mark.parametrize("kind", ["few", "short", "training"])
def test_gradients_in_sums_equal_float64_and_those_of_the_package(device, heads, kv_heads, kind):
    """The package's main kernel between our own passes; above 256 segments it finds them another way."""
    pytest.importorskip("triton")
    from pgolf.kernels.attention_rows import rows_of

    if "fa4" not in present(device, torch.bfloat16, 64) or not gives_sums(device, torch.bfloat16, 64):
        pytest.skip("the layout of its sums is not known here")
    lengths = {"short": [random.randint(1, 16) for _ in range(500)], "training": [1, 2048, 127, 128, 129, 900, 7, 2000]}
    bounds = list(itertools.accumulate(lengths[kind], initial=0)) if kind in lengths else BOUNDS
    (q, k, v), dy = random_inputs(device, bounds[-1], heads + kv_heads, kv_heads)
    q, k, dy = q[:, :, :heads], q[:, :, heads:], dy[:, :, :heads].contiguous()
    packed = segments(device, bounds, 2048)
    rows = rows_of(packed.cu_seqlens, bounds[-1])
    with using("fa4"):
        y, gradient = attend_with_gradient(q, k, v, packed)
        package = gradient(dy)
        _, gradient = attend_with_gradient(q, k, v, packed, rows)
        sums, dk, dv = gradient(dy, (dy.float() * y.float()).sum(-1)[0])
    dq = torch.stack([in_order(each, rows) for each in sums], 2).flatten(1, 2)[None] / 8
    expected = reference((q, k, v), dy, bounds)[1:]
    whole = package[0], *(each.float().sum(0) for each in package[1:])
    for got, other, want in zip((dq, dk.float().sum(0), dv.float().sum(0)), whole, expected, strict=True):
        ours, theirs = ((each.double() - want).square().mean().sqrt() for each in (got, other))
        assert ours < 0.01 * want.square().mean().sqrt()
        assert ours < 1.02 * theirs


def test_documents_do_not_see_each_other(device, name):
    (q, k, v), _ = random_inputs(device, BOUNDS[-1])
    packed = segments(device)
    with forced(name, device):
        before = attend(q, k, v, packed)
        k2, v2 = k.clone(), v.clone()
        k2[:, :146] += 1
        v2[:, :146] -= 1
        after = attend(q, k2, v2, packed)
    assert torch.equal(before[:, 146:], after[:, 146:])
    assert not torch.equal(before[:, :146], after[:, :146])


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_one_graph_gives_the_same(device, name, packed):
    inputs, dy = random_inputs(device, BOUNDS[-1])
    boundaries = segments(device) if packed else None

    def around(q, k, v):
        return attend(q * 0.5, k, v, boundaries) * 2

    q, k, v = inputs
    y, dq, dk, dv = reference((q * 0.5, k, v), dy * 2, BOUNDS if packed else [0, BOUNDS[-1]])
    torch._dynamo.reset()
    with forced(name, device, packed=packed):
        compiled = torch.compile(around, fullgraph=True, dynamic=False)
        check(compiled, inputs, dy, (y * 2, dq * 0.5, dk, dv), around)
    torch._dynamo.reset()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_flash4_tells_the_compiler_the_truth(device, packed):
    if "fa4" not in present(device, torch.bfloat16, 64):
        pytest.skip("fa4 is not here")
    inputs, dy = random_inputs(device, BOUNDS[-1])
    cu, longest = segments(device) if packed else (None, 0)
    q, k, v, dy = (tensor[0] if packed else tensor for tensor in (*inputs, dy))
    kinds = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (q, k, v)]
    torch.library.opcheck(flash4.forward, (*leaves, cu, longest), test_utils=kinds)
    y, lse = flash4.forward(q, k, v, cu, longest)
    torch.library.opcheck(flash4.backward, (dy, q, k, v, y, lse, cu, longest), test_utils=kinds)


def test_float32_on_the_device_takes_sdpa(device):
    assert backend(device, torch.float32) == "sdpa"
    inputs, dy = random_inputs(device, BOUNDS[-1], dtype=torch.float32)
    packed = segments(device)
    expected = reference(inputs, dy, BOUNDS)
    for got, want in zip(results(lambda *qkv: attend(*qkv, packed), inputs, dy), expected, strict=True):
        error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
        assert error < 2e-3  # TF32 products, where they are allowed


def test_the_best_one_is_chosen(device):
    found = present(device, torch.bfloat16, 64)
    assert found[0] == backend(device, torch.bfloat16)
    assert found == [name for name in BACKENDS if name in found]
    assert attention.varlen_attn is None or torch.cuda.get_device_capability()[0] < 8 or "varlen" in found


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
