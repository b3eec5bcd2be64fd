"""Products with epilogues against autograd in double precision; on a CPU the same functions are called with tensors."""

import interpreter  # noqa: F401  before the kernels are defined
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

import rounded_weights

from pgolf.kernels import elements, epilogue, float8
from pgolf.kernels import stream_products as products
from pgolf.kernels.rounded_rows import round_rows
from pgolf.kernels.row_factors import norm_factors, past_factor
from pgolf.kernels.transposed import transposed, weight_gradient8
from pgolf.model.norm import EPS

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
IN_32_BITS = pytest.mark.skipif(ON_GPU, reason="products on a GPU are of 16 bits")
CHECKED = 512
"""Rows that are compared; sums over all rows are."""
SIZES = [
    pytest.param(40, 32, 64, torch.float32, 1e-5, id="small", marks=IN_32_BITS),
    pytest.param(32, 32, 32, torch.float32, 1e-5, id="square", marks=IN_32_BITS),
    pytest.param(512, 512, 512, torch.bfloat16, 8e-3, id="square16", marks=pytest.mark.gpu),
    pytest.param(98_304, 512, 2048, torch.bfloat16, 8e-3, id="training", marks=pytest.mark.gpu),
]
SCALE, SLOPE, CARRY = 0.7, 0.5, 0.3


@pytest.fixture(autouse=True)
def here(monkeypatch):
    if ON_GPU and not epilogue.present():
        pytest.skip("such products take a Hopper GPU and quack-kernels")
    if not ON_GPU:
        monkeypatch.setattr(elements, "PLACE", 0)


def near(found, expected, bound):
    expected = expected.detach()
    assert float((found.double() - expected).norm() / expected.norm()) < bound


def normal(*shape, dtype=torch.float32):
    torch.manual_seed(sum(shape))
    return torch.randn(shape, device=DEVICE).to(dtype)


def scalar(value):
    return torch.tensor(value, device=DEVICE)


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
def test_the_mlp_and_its_norm(tokens, width, units, dtype, bound):
    h, g, past = (normal(tokens, width, dtype=dtype).roll(shift, 0) for shift in range(3))
    up, down = normal(units, width, dtype=dtype) / width**0.5, normal(width, units, dtype=dtype) / units**0.5
    inverse, factor = norm_factors(h, scalar(SCALE))
    f, dp = (torch.empty(tokens, units, dtype=dtype, device=DEVICE) for _ in range(2))
    out, dh = torch.empty_like(h), torch.empty_like(h)
    products.hidden(h, up, f, factor=factor, slope=SLOPE)
    products.added(f, down, out, past)
    along = products.hidden_backward(g, down.T, dp, f=f, factor=factor, slope=SLOPE)["along"]
    common = past_factor(along, inverse, width, times=2.0)
    products.past_norm(dp, up.T, dh, past, h=h, along=common, carry=scalar(CARRY))
    given, both = {"h": h, "along": common, "carry": scalar(CARRY), "branch": g}, torch.empty_like(dh)
    products.past_norm_and_branch(dp, up.T, both, past, **given)

    some = slice(CHECKED)
    a = h[some].double().requires_grad_()
    p = F.linear(F.rms_norm(a, (width,), eps=EPS) * SCALE, up.double())
    wanted = F.leaky_relu(p, SLOPE).square()
    near(f[some], wanted, bound)
    assert float((elements.of_mark(f[some], 0.0, 1.0) != (p < 0)).double().mean()) < (
        1e-6 if dtype == torch.float32 else 2e-3
    )
    y = wanted @ down.double().T
    near(out[some], past[some].double() + y, bound)
    of_p, gradient = torch.autograd.grad(y, [p, a], g[some].double())
    near(dh[some], gradient + CARRY * past[some].double(), bound)
    near(dh[some].double() - CARRY * past[some].double(), gradient, 2 * bound)
    near(both[some], gradient + CARRY * past[some].double() + g[some].double(), bound)
    near(dp[some] / factor[some, None], of_p, 2 * bound)


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
@pytest.mark.parametrize(
    "beside", [{}, {"branch"}, {"skip"}, {"carry"}, {"carry", "skip"}],
    ids=["alone", "branch", "skip", "lane", "lane, skip"],
)  # fmt: skip
@pytest.mark.parametrize("last", [False, True])
def test_the_head_of_a_block(tokens, width, units, dtype, bound, beside, last):
    """Where it is the model's last one, no gradient of x0 comes from later ones."""
    x, x0, past, later, branch = (normal(tokens, width, dtype=dtype).roll(shift, 0) for shift in range(5))
    inside, later = "carry" not in beside, 0.0 if last else later
    read, weight = normal(tokens, units + 16, dtype=dtype), normal(units + 16, width, dtype=dtype) / units**0.5
    first, second, along, by = normal(width), normal(width).flip(0), normal(tokens), normal(width).roll(3)
    dx, dx0 = torch.empty_like(x), torch.empty_like(x)
    given = {"x": x, "x0": x0, "later": later, "first": first, "second": second, "along": along, "dx0": dx0}
    if "branch" in beside:
        found = products.past_mix_and_branch(read, weight.T, dx, past, **given, branch=branch, ratio=by)
    elif "skip" in beside and not inside:
        given |= {"s": branch, "share": by, "carry": scalar(CARRY)}
        found = products.past_mix_of_lane_and_skip(read, weight.T, dx, past, **given)
    elif "skip" in beside:
        found = products.past_mix_and_skip(read, weight.T, dx, past, **given, s=branch, share=by)
    elif inside:
        found = products.past_mix(read, weight.T, dx, past, **given)
    else:
        found = products.past_mix_of_lane(read, weight.T, dx, past, **given, carry=scalar(CARRY))
    a, b, g, one, two, row, s = (t.double() for t in (x, x0, past, first, second, along[:, None], branch))
    dh = read.double() @ weight.double() - (a * one + b * two) * row + (g if inside else 0)
    d, by = dh * one + (0 if inside else CARRY * g), by.double()
    near(dx, d * by if "skip" in beside else d + s * by if "branch" in beside else d, bound)
    near(dx0, dh * two + (later if last else later.double()), bound)
    near(found["dfirst"].sum(0), (dh * a).sum(0), bound)
    near(found["dsecond"].sum(0), (dh * b).sum(0), bound)
    names = ["dfirst", "dsecond"]
    if "skip" in beside:
        near(found["dskip"].sum(0), (d * s).sum(0), bound)
        names.append("dskip")
        if not inside:
            near(found["djoined"].sum(0), (d * a).sum(0), bound)
            names.append("djoined")
    assert torch.equal(found["columns"], torch.stack([found[name] for name in names]))


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
@pytest.mark.parametrize("last", [True, False])
def test_past_the_mix_of_the_first_layer(tokens, width, units, dtype, bound, last):
    """Its gradient of x0 is the sum of both of `past_mix`."""
    x0, past, later = (normal(tokens, width, dtype=dtype).roll(shift, 0) for shift in range(3))
    read, weight = normal(tokens, units + 16, dtype=dtype), normal(units + 16, width, dtype=dtype) / units**0.5
    both, along, later, out = normal(width), normal(tokens), 0.0 if last else later, torch.empty_like(x0)
    found = products.past_mix_of_first(read, weight.T, out, past, x0=x0, later=later, both=both, along=along)
    x, one = x0.double(), both.double()
    dh = read.double() @ weight.double() - x * one * along.double()[:, None] + past.double()
    near(out, dh * one + (later if last else later.double()), bound)
    near(found["columns"].sum(1), (dh * x).sum(0, keepdim=True), bound)


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
def test_into_the_stream(tokens, width, units, dtype, bound):
    z, h, weight = (
        normal(tokens, width, dtype=dtype),
        normal(tokens, width, dtype=dtype).roll(1, 0),
        normal(width, width),
    )
    weight, out = (weight / width**0.5).to(dtype), torch.empty_like(h)
    squares = products.into_stream(z, weight, out, h)["squares"]
    expected = h.double() + z.double() @ weight.double().T
    near(out, expected, bound)
    near(squares.sum(1), expected.square().sum(1), bound)


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
def test_products_of_8_bits_are_those_of_the_rounded_operands(tokens, width, units, dtype, bound):
    """Their own results in 8 bits are off by half a step at most."""
    h, z = normal(tokens, width, dtype=dtype), normal(tokens, width, dtype=dtype).roll(1, 0)
    up, down, out = (
        rounded_weights.round_weight(normal(*shape)) for shape in ((units, width), (width, units), (width, width))
    )
    wo = (out.values.to(dtype) * out.scale).to(dtype)
    stream, h8 = torch.empty_like(h), torch.empty_like(h, dtype=float8.KIND)
    products.into_stream8(z, wo, stream, h, h8=h8)
    expected = h.double() + z.double() @ wo.double().T
    near(stream, expected, bound)
    near(h8, expected.clamp(-float8.LARGEST, float8.LARGEST), 0.03)
    f, f8 = (torch.empty(tokens, units, dtype=kind, device=DEVICE) for kind in (dtype, float8.KIND))
    _, factor = norm_factors(h, scalar(SCALE))
    products.hidden8(h8, up.values, f, factor=factor * 0.1, slope=SLOPE, scale=up.scale, f8=f8)
    p = (h8.double() @ up.values.double().T) * up.scale.double() * 0.1 * factor.double()[:, None]
    wanted = F.leaky_relu(p, SLOPE).square()
    near(f, wanted, bound)
    near(f8, wanted.clamp(max=float8.LARGEST), 0.03)
    product = f8.double() @ down.values.double().T * down.scale.double()
    products.added8(f8, down.values, stream, h, scale=down.scale)
    near(stream, product + h.double(), bound)
    products.scaled8(f8, down.values, stream, scale=down.scale)
    near(stream, product, bound)


@pytest.mark.parametrize(("tokens", "width", "units", "dtype", "bound"), SIZES)
def test_gradients_of_hidden_units_of_8_bits_are_those_of_the_rounded_operands(tokens, width, units, dtype, bound):
    """And not of others: roundings are far beyond the bound. Rows of g are of very different size, some are zeros."""
    h, past = normal(tokens, width, dtype=dtype), normal(tokens, width, dtype=dtype).roll(1, 0)
    g = (normal(tokens, width).roll(2, 0) * 10.0 ** (normal(tokens, 1) / 2)).to(dtype)
    g[::7] = 0
    f = elements.marked(normal(tokens, units).square(), normal(tokens, units).roll(1, 0)).to(dtype)
    up, down = (
        rounded_weights.turned(rounded_weights.round_weight(normal(*shape) / shape[1] ** 0.5))
        for shape in ((units, width), (width, units))
    )
    inverse, factor = norm_factors(h, scalar(SCALE))
    g8, size, scaled = round_rows(g, factor, down.scale)
    dh, dp8 = torch.empty_like(h), torch.empty_like(f, dtype=float8.KIND)
    across = dp8.new_empty(units, tokens)
    along = products.hidden_backward8(g8, down.values, dp8, f=f, slope=SLOPE, across=across.T)["along"]
    common = past_factor(along, inverse, width, times=2.0, size=size)
    given = {"h": h, "along": common, "carry": scalar(CARRY), "factor": scaled, "scale": up.scale}
    products.past_norm8(dp8, up.values, dh, past, **given)
    both = torch.empty_like(dh)
    products.past_norm8_and_branch(dp8, up.values, both, past, **given, branch=g)
    of_weight = weight_gradient8(float8.Eighth(across, scalar(1.0)), transposed(h, scaled))

    some = slice(CHECKED)
    w, a = down.values.double(), f[some].double()
    steepness = 2 * a.sqrt() * torch.where(elements.of_mark(f[some], 0.0, 1.0) > 0, -SLOPE, 1.0)
    rounded = g8[some].double() @ w.T
    near(dp8[some], (rounded * steepness * float8.OF_HIDDEN).clamp(-448, 448), 0.03)
    assert torch.equal(across.T.view(torch.uint8), dp8.view(torch.uint8))
    assert not dp8[::7].float().any()
    near(common[some], (rounded * size[some, None] * a).sum(1) * 2 * inverse[some].double() ** 2 / width, bound)
    dp = dp8.double() * scaled[:, None].double()
    back = dp[some] @ up.values.double().T * up.scale.double()
    back += CARRY * past[some].double() - h[some].double() * common[some, None].double()
    near(dh[some], back, bound)
    near(both[some], back + g[some].double(), bound)
    near(of_weight, dp.T @ h.double(), 0.04 if ON_GPU else 0.08)  # the interpreter rounds badly
    exact = g.double() @ w.T * down.scale.double()
    exact *= (
        2 * f.double().sqrt() * torch.where(elements.of_mark(f, 0.0, 1.0) > 0, -SLOPE, 1.0) * factor[:, None].double()
    )
    near(dp, exact, 0.06)
    near(of_weight, exact.T @ h.double(), 0.08 if ON_GPU else 0.12)
    assert float((dp - exact).norm() / exact.norm()) > 0.01


@IN_32_BITS
def test_hidden_units_beyond_8_bits_are_clipped():
    """Before they are rounded: some casts saturate, others give no number."""
    g8, w = (torch.full(shape, 448.0).to(float8.KIND) for shape in ((2, 64), (16, 64)))
    g8[1] = -g8[1].float()
    dp8, across = torch.empty(2, 16), torch.empty(16, 2)
    f = torch.full((2, 16), 4.0)
    products.hidden_backward8(g8, w, dp8, f=f, slope=SLOPE, across=across.T)
    assert 64 * 448**2 * 4 * float8.OF_HIDDEN > 448
    assert torch.equal(across.T, dp8)
    assert (dp8[0] == 448).all()
    assert (dp8[1] == -448).all()
