"""The passes of a written-out block against plain torch in double precision, values and gradients."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from pgolf.kernels import (
    column_sums,
    elements,
    float8,
    gated_output,
    heads,
    heads_product,
    lane_end,
    lane_sum,
    residual_norm,
    row_factors,
)  # fmt: skip
from pgolf.model.blocks import exclusive
from pgolf.model.norm import EPS
from pgolf.model.rotary import rotate

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
TRAINING = pytest.mark.gpu
SMALL_WIDTH, SMALL_TOKENS = 24, 11  # a width that is no power of two, tokens that fill no program
SIZES = [
    pytest.param(SMALL_TOKENS, SMALL_WIDTH, torch.float32, 2e-6, id="small"),
    pytest.param(98_304, 512, torch.bfloat16, 8e-3, id="training", marks=TRAINING),
]


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, device=DEVICE).to(dtype)


def assert_near(found, expected, bound):
    for name, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape, name
        assert float((a.double() - b).detach().norm() / b.detach().norm()) < bound, name


def doubles(*tensors):
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def unit_rms(x):
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("inside", [True, False])
def test_mix_and_norm(tokens, width, dtype, bound, inside):
    torch.manual_seed(0)
    x, x0, dy, g, later = (random(tokens, width, dtype=dtype) for _ in range(5))
    mix, s = random(2, width), torch.tensor(0.7, device=DEVICE)
    carry = torch.tensor(1.0 if inside else 0.3, device=DEVICE)
    normed = residual_norm.norm_forward(x, s, x0, mix)
    a, b, c = doubles(x, x0, mix)
    h = c[0] * a + c[1] * b
    y = unit_rms(h) * s.double()
    assert_near((normed.h, normed.y), (h, y), bound)
    bare = residual_norm.norm_forward(x, s, x0, mix, unit=False)
    assert bare.y is bare.h
    assert torch.equal(bare.h, normed.h)
    assert_near([bare.h * bare.factor[:, None]], [y], bound)
    wanted = torch.autograd.grad([y, h if inside else a * carry], [a, b, c], [dy.double(), g.double()])
    found = residual_norm.mix_backward(dy, g, carry, x, x0, mix, s, normed.inverse, later, inside)
    assert_near(found, (wanted[0], wanted[1] + later, wanted[2]), bound)
    first = residual_norm.mix_backward(dy, g, carry, x, x0, mix, s, normed.inverse, None, inside)
    wanted = torch.autograd.grad([unit_rms(c[0] * a + c[1] * b) * s.double()], [b], dy.double())
    if not inside:  # nothing past the norm reaches x0
        assert_near([first.x0], wanted, bound)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
def test_norm_alone(tokens, width, dtype, bound):
    torch.manual_seed(0)
    x, dy, g = (random(tokens, width, dtype=dtype) for _ in range(3))
    s, carry = torch.tensor(0.7, device=DEVICE), torch.tensor(0.5, device=DEVICE)
    normed = residual_norm.norm_forward(x, s)
    (a,) = doubles(x)
    y = unit_rms(a) * s.double()
    wanted = torch.autograd.grad([y, a * carry], [a], [dy.double(), g.double()])
    assert_near([normed.y], [y], bound)
    assert_near([residual_norm.norm_backward(dy, g, carry, normed.y, s, normed.inverse)], wanted, bound)


HEADS = [
    pytest.param(2, heads.Shape(4, 2, 8, 5), 2, torch.float32, 2e-6, id="small"),
    pytest.param(1, heads.Shape(8, 4, 64, 98_304), 8, torch.bfloat16, 8e-3, id="training", marks=TRAINING),
    pytest.param(48, heads.Shape(8, 4, 64, 2_048), 8, torch.bfloat16, 8e-3, id="rows", marks=TRAINING),
]


def plain_heads(x, gain, tables, shape):
    """q', k', v [T, heads, D] of the projection x [T, (H + 2 Hkv) D]."""
    q, k, v = shape.split(x.unflatten(0, (-1, shape.period)))
    q, k = rotate(unit_rms(q), *tables) * gain[:, None], rotate(unit_rms(k), *tables)
    return [part.flatten(0, 1) for part in (q, k, v)]


def inverses(x, shape):
    """1 / rms of queries and keys."""
    return (x.unflatten(1, (-1, shape.head_dim))[:, : -shape.kv_heads].square().mean(-1) + EPS).rsqrt()


@pytest.mark.parametrize(("rows", "shape", "half", "dtype", "bound"), HEADS)
@pytest.mark.parametrize(("gain_of_first", "parts"), [(0.7, 1), (0.0, 2), (-1e-30, 2)])
def test_heads(rows, shape, half, dtype, bound, gain_of_first, parts):
    torch.manual_seed(0)
    tokens, total = rows * shape.period, shape.heads + 2 * shape.kv_heads
    x, gain = random(tokens, total * shape.head_dim, dtype=dtype), random(shape.heads)
    gain[0] = gain_of_first
    angles = random(shape.period, half)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    (a, c), tables = doubles(x, gain), (cos.double(), sin.double())
    expected = plain_heads(a, c, tables, shape)
    y = x.clone()
    inverse = heads.heads_forward(y, gain, cos, sin, shape)
    found = shape.split(y)
    assert torch.equal(found[2].double(), expected[2])
    assert_near(found[:2], expected[:2], bound)
    assert_near([inverse[:, : -shape.kv_heads]], [inverses(a, shape)], bound)
    dq, dv2 = (random(tokens, n, shape.head_dim, dtype=dtype) for n in (shape.heads, shape.kv_heads))
    dk, dv = (random(parts, tokens, shape.kv_heads, shape.head_dim, dtype=dtype) for _ in range(2))
    upstream = dq.double(), dk.double().sum(0), dv.double().sum(0) + dv2.double()
    wanted = torch.autograd.grad(expected, [a, c], upstream)
    dx, factor, common = (
        random(tokens, x.size(1) + 16, dtype=dtype),
        random(tokens).abs(),
        random(tokens, shape.kv_heads),
    )
    behind, rest = dx[:, x.size(1) :].clone(), (gain, cos, sin, shape)
    dgain = heads.heads_backward((dq, dk, dv), dv2, y, inverse, *rest, dx, factor, common).sum(0)
    multiplied = wanted[0] * factor.double()[:, None]
    assert_near((dx[:, : x.size(1)], dgain), (multiplied, wanted[1]), bound)
    assert_near([dgain[:1]], [wanted[1][:1]], bound)  # its own gain is 0
    assert_near([common], [(upstream[2] * expected[2]).sum(-1)], bound)
    assert torch.equal(dx[:, x.size(1) :], behind)


@pytest.mark.parametrize(("rows", "shape", "half", "dtype", "bound"), HEADS)
@pytest.mark.parametrize("eight", [False, True], ids=["as it is", "float8"])
def test_product_of_heads(rows, shape, half, dtype, bound, eight):
    """On Hopper the norm lies in the product's epilogue."""
    torch.manual_seed(0)
    total, width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim, 8 * shape.head_dim
    n, weight = random(rows * shape.period, width, dtype=dtype), random(total, width, dtype=dtype)
    if eight:
        n, weight = n.to(float8.KIND), weight.to(float8.KIND)
    angles, gain = random(shape.period, half), random(shape.heads)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    factor = random(len(n)).abs() + 0.1
    y, inverse = heads_product.heads_product(n, weight, gain, cos, sin, shape, factor, dtype)
    assert y.dtype == dtype
    x = (n.double() * factor.double()[:, None]) @ weight.double().T
    assert_near(shape.split(y), plain_heads(x, gain.double(), (cos.double(), sin.double()), shape), bound)
    assert_near([inverse[:, : -shape.kv_heads]], [inverses(x, shape)], bound)


@pytest.mark.parametrize(
    ("tokens", "shape", "dtype", "bound"),
    [
        pytest.param(9, heads.Shape(4, 2, 8, 9), torch.float32, 2e-6, id="small"),
        pytest.param(98_304, heads.Shape(8, 4, 64, 98_304), torch.bfloat16, 8e-3, id="training", marks=TRAINING),
    ],
)
@pytest.mark.parametrize(("xsa", "gated"), [(True, True), (True, False), (False, True), (False, False)])
def test_gated_output(tokens, shape, dtype, bound, xsa, gated):
    torch.manual_seed(0)
    wide = random(tokens, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, dtype=dtype)
    dz = random(tokens, shape.heads, shape.head_dim, dtype=dtype)
    y = random(shape.heads, tokens, shape.head_dim, dtype=dtype).transpose(0, 1)  # as torch may leave it
    n, w, v = random(tokens, 20, dtype=dtype), random(shape.heads, 12), shape.split(wide)[2]
    factor = random(tokens).abs()
    logit = ((n.double() * factor.double()[:, None])[:, :12] @ w.double().T).requires_grad_()
    a, b = doubles(y, v)
    z = exclusive(a[None], b[None])[0] if xsa else a
    z = z * torch.sigmoid(0.5 * logit).unsqueeze(-1) if gated else z
    gate = gated_output.Gate(n, factor, w, 0.5) if gated else None
    found, logits = gated_output.gated_forward(y, v if xsa else None, gate)
    assert_near([found], [z], bound)
    wanted = torch.autograd.grad(z, [a, b, logit], dz.double(), allow_unused=True)
    dl, common = random(tokens, 16, dtype=dtype), random(tokens, shape.kv_heads if xsa else shape.heads)
    delta = random(tokens, shape.heads)
    dy, dv = gated_output.gated_backward(dz, y, v if xsa else None, gate, logits, dl, common, delta)
    assert_near([dy, delta], [wanted[0], (wanted[0] * a).sum(-1)], bound)
    assert (dv is None) == (not xsa)
    if xsa:
        assert_near([dv], wanted[1:2], bound)
    if gated:
        assert not dl[:, shape.heads :].any()
        assert_near([logits, dl[:, : shape.heads]], [logit, wanted[2] * factor.double()[:, None]], bound)
        assert_near([common], [(wanted[2] * logit).unflatten(1, (common.size(1), -1)).sum(-1)], bound)


@pytest.mark.parametrize("shape", [(3, 300, 48), (1, 2050, 8), (2, 1, 5), (1, 7, 130)])
def test_column_sums(shape):
    torch.manual_seed(0)
    parts = torch.randn(shape, device=DEVICE)
    assert_near([column_sums.column_sums(parts)], [parts.double().sum(1)], 1e-5)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
def test_factors_of_rows(tokens, width, dtype, bound):
    torch.manual_seed(0)
    x, parts, s = random(tokens, width, dtype=dtype), random(tokens, 3), torch.tensor(0.7, device=DEVICE)
    inverse, factor = row_factors.norm_factors(x, s)
    wanted = (x.double().square().mean(1) + EPS).rsqrt()
    assert_near((inverse, factor), (wanted, 0.7 * wanted), 1e-6)
    squares = x.float().square().unflatten(1, (-1, width // 4)).sum(-1)
    assert_near(row_factors.norm_factors(squares, s, width), (wanted, 0.7 * wanted), 1e-6)
    found = row_factors.past_factor(parts, inverse, width, times=2.0)
    assert_near([found], [2 / width * wanted**2 * parts.double().sum(1)], 1e-5)


def test_a_marked_number_tells_the_sign_and_is_the_nearest_of_its_kind():
    torch.manual_seed(0)
    f, p = torch.rand(10_000) * 4 + 1e-6, torch.randn(10_000)
    found = elements.marked(f, p)
    assert torch.equal(found, found.bfloat16().float())
    assert torch.equal(elements.of_mark(found, 0.0, 1.0), (p < 0).float())
    last = torch.exp2(f.log2().floor() - 7)
    assert ((found - f) / last).abs().max() <= 1
    assert ((found - f) / last).mean().abs() < 0.03  # the mean of 10,000 errors of deviation 0.58 deviates by 0.006


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("one_lane", [False, True])
@pytest.mark.parametrize("one_gradient", [False, True])
def test_lanes(tokens, width, dtype, bound, one_lane, one_gradient, monkeypatch):
    torch.manual_seed(0)
    if not ON_GPU:
        monkeypatch.setattr(lane_sum, "BLOCK", 64)  # several programs
        monkeypatch.setattr(lane_sum, "HELD", 64)
    l0, l1, attended, fed, g0, g1 = (random(tokens, width, dtype=dtype) for _ in range(6))
    post, carry = random(2, 2), random(2)
    l1, g1 = l0 if one_lane else l1, g0.view_as(g0) if one_gradient else g1
    a, b, c, d, p, r = doubles(l0, l1, attended, fed, post, carry)
    expected = r[0] * a + p[0, 0] * c + p[1, 0] * d, r[1] * b + p[0, 1] * c + p[1, 1] * d
    assert_near(lane_sum.lanes_forward((l0, l1), attended, fed, post, carry), expected, bound)
    wanted = torch.autograd.grad(expected, [c, d, p, r], [g0.double(), g1.double()])
    assert_near(lane_sum.lanes_backward((g0, g1), (l0, l1), attended, fed, post), wanted, bound)


@pytest.mark.parametrize(("tokens", "width", "dtype", "bound"), SIZES)
def test_the_end_of_lanes(tokens, width, dtype, bound):
    torch.manual_seed(0)
    l0, l1, attended, fed, dy = (random(tokens, width, dtype=dtype) for _ in range(5))
    post, carry = random(2, 2), random(2)
    a, b, c, d, p, r = doubles(l0, l1, attended, fed, post, carry)
    lanes = r[0] * a + p[0, 0] * c + p[1, 0] * d, r[1] * b + p[0, 1] * c + p[1, 1] * d
    expected = F.rms_norm((lanes[0] + lanes[1]) / 2, (width,), eps=EPS)
    y, inverse = lane_end.end_forward((l0, l1), attended, fed, post, carry)
    assert_near([y], [expected], bound)
    g, found = lane_end.end_backward(dy, y, inverse, (l0, l1), attended, fed, post)
    wanted = torch.autograd.grad(expected, [*lanes, c, d, p, r], dy.double())
    assert_near([g, g, *found], wanted, bound)
