import math

import pytest
import torch

from pgolf.errors import InputError
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.gptq import gptq_quantize
from pgolf.quant.grid import dequantize, round_to_nearest, sdclip_scale
from pgolf.quant.quantize import entropy
from pgolf.quant.rate import bits_per_code, predicted_bytes


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "clip"), [(2, 1), (4, 7), (5, 15), (6, 31), (7, 63), (8, 127)])
def test_clip_of_each_width(bits, clip):
    assert GridConfig(bits=bits).clip == clip


def test_sdclip_on_normal_rows_has_the_published_step_entropy_and_error():
    weight = normal(2000, 512)
    scale = sdclip_scale(weight, 12.85, 31)
    codes = round_to_nearest(weight, scale, 31)
    assert scale.dtype == torch.float16
    assert scale.float().mean().item() == pytest.approx(0.4145, abs=0.001)
    assert entropy(codes) == pytest.approx(3.328, abs=0.02)
    assert (weight - dequantize(codes, scale)).square().mean().item() == pytest.approx(0.0143, abs=0.0002)
    eight = round_to_nearest(weight, sdclip_scale(weight, 12.85, 127), 127)
    assert entropy(eight) == pytest.approx(5.353, abs=0.02)


def test_entropy_depends_on_k_over_c_only():
    weight = normal(500, 512)
    six = round_to_nearest(weight, sdclip_scale(weight, 12.85, 31), 31)
    seven = round_to_nearest(weight, sdclip_scale(weight, 12.85 * 63 / 31, 63), 63)
    assert entropy(six) == pytest.approx(entropy(seven), abs=0.005)


def test_scale_is_the_formula_with_the_unbiased_deviation_rounded_to_float16():
    weight = torch.tensor([[1.0, 2.0, 6.0], [-4.0, 0.0, 4.0]])
    deviations = [math.sqrt((4 + 1 + 9) / 2), math.sqrt((16 + 16) / 2)]  # divided by n - 1
    expected = torch.tensor([12.85 * deviation / 31 for deviation in deviations]).half()
    assert torch.equal(sdclip_scale(weight, 12.85, 31), expected)
    biased = torch.tensor([12.85 * deviation * math.sqrt(2 / 3) / 31 for deviation in deviations]).half()
    assert not torch.equal(expected, biased)


def test_scale_of_bfloat16_weights_is_computed_in_float32():
    weight = normal(8, 64).bfloat16()
    assert torch.equal(sdclip_scale(weight, 12.85, 31), sdclip_scale(weight.float(), 12.85, 31))


def test_codes_are_nearest_for_the_rounded_scale():
    weight = normal(64, 512, seed=1)
    scale = sdclip_scale(weight, 12.85, 31)
    codes = gptq_quantize(weight, torch.eye(512), scale, 31)
    steps = weight.double() / scale.double()[:, None]
    assert (codes - steps).abs().max() <= 0.5 + 1e-5
    exact = 12.85 * weight.double().std(dim=1) / 31
    assert not torch.equal(codes, (weight / exact[:, None]).round().to(torch.int8)), "the case cannot tell them apart"


def test_rounding_ties_go_to_even_and_codes_stay_in_the_grid():
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1000.0, -1000.0]])
    codes = round_to_nearest(weight, torch.ones(1, dtype=torch.float16), 31)
    assert codes.tolist() == [[0, 2, 2, 0, -2, -2, 31, -31]]
    assert codes.dtype == torch.int8


def test_dequantize_is_code_times_scale_in_float32():
    codes = torch.tensor([[1, -31], [2, 0]], dtype=torch.int8)
    scale = torch.tensor([0.1, 3.0]).half()
    restored = dequantize(codes, scale)
    assert restored.dtype == torch.float32
    assert restored.tolist() == [[scale[0].item(), -31 * scale[0].item()], [6.0, 0.0]]


@pytest.mark.parametrize("value", [0.0, 0.25, 1e-30])
def test_rows_without_spread_get_a_usable_scale(value):
    weight = torch.full((2, 16), value)
    scale = sdclip_scale(weight, 12.85, 31)
    assert (scale > 0).all()
    restored = dequantize(round_to_nearest(weight, scale, 31), scale)
    assert torch.isfinite(restored).all()
    assert (restored.abs() <= weight.abs() + scale.float()[:, None]).all()


@pytest.mark.parametrize(("bits", "k_sigma"), [(6, 12.85), (6, 13.0), (6, 11.5), (7, 14.0), (8, 20.0), (8, 12.85)])
def test_rate_model_predicts_the_entropy_of_gaussian_weights(bits, k_sigma):
    grid = GridConfig(bits=bits, k_sigma=k_sigma)
    weight = 0.03 * normal(1000, 512, seed=bits)
    codes = round_to_nearest(weight, sdclip_scale(weight, k_sigma, grid.clip), grid.clip)
    assert bits_per_code(grid) == pytest.approx(entropy(codes), abs=0.02)


def test_rate_model_gives_the_published_table():
    attn, mlp, embed = GridConfig(k_sigma=13.0), GridConfig(k_sigma=11.5), GridConfig(bits=7, k_sigma=14.0)
    assert [round(bits_per_code(grid), 3) for grid in (attn, mlp, embed)] == [3.301, 3.478, 4.217]
    assert bits_per_code(GridConfig()) == pytest.approx(3.318, abs=5e-4)
    assert bits_per_code(GridConfig(bits=8, k_sigma=20.0)) == pytest.approx(4.714, abs=5e-4)
    assert bits_per_code(GridConfig(k_sigma=12.85)) - bits_per_code(GridConfig(k_sigma=12.85 * 1.01)) == pytest.approx(
        0.01435, abs=1e-5
    )


def test_predicted_bytes_of_the_published_shapes():
    shapes = {"tok_emb.weight": (8192, 512)}
    for layer in range(11):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.attn.{name}.weight": (512, 512) for name in ("c_q", "proj")}
        shapes |= {f"{block}.attn.{name}.weight": (256, 512) for name in ("c_k", "c_v")}
        shapes |= {f"{block}.mlp.fc.weight": (2048, 512), f"{block}.mlp.proj.weight": (512, 2048)}
    config = QuantizeConfig(
        attn=GridConfig(k_sigma=13.0), mlp=GridConfig(k_sigma=11.5), embed=GridConfig(bits=7, k_sigma=14.0)
    )
    rows = sum(shape[0] for shape in shapes.values())
    assert rows == 53_248
    assert predicted_bytes(shapes, config) - 2 * rows == pytest.approx(126.5e6 / 8, rel=5e-4)
    with_small = shapes | {"skip_weights": (8, 512)}
    assert predicted_bytes(with_small, config) == predicted_bytes(shapes, config) + 2 * 8 * 512


@pytest.mark.parametrize(("bits", "k_sigma", "least", "most"), [(2, 1e6, 0, 0), (8, 0.01, 8, 8)])
def test_rate_model_stays_between_nothing_and_the_code_width(bits, k_sigma, least, most):
    assert least <= bits_per_code(GridConfig(bits=bits, k_sigma=k_sigma)) <= most


def test_entropy_of_known_codes():
    assert entropy(torch.zeros(4, 4, dtype=torch.int8)) == 0
    assert entropy(torch.tensor([[-127, 127], [0, 1]], dtype=torch.int8)) == 2
    assert entropy(torch.tensor([1, 1, 1, -128], dtype=torch.int8)) == pytest.approx(0.811278, abs=1e-6)


@pytest.mark.parametrize(("key", "value"), [("bits", 1), ("bits", 9), ("k_sigma", 0.0), ("k_sigma", -1.0)])
def test_grid_refuses_by_key_and_value(key, value):
    with pytest.raises(InputError, match=rf"`{key}` is {value};"):
        GridConfig(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("damp", 0.0), ("damp", -0.1), ("blocksize", 0), ("small_numel", -1)])
def test_scheme_refuses_by_key_and_value(key, value):
    with pytest.raises(InputError, match=rf"`{key}` is {value};"):
        QuantizeConfig(**{key: value})


def test_step_beyond_float16_is_refused():
    weight = 1e6 * normal(4, 32)
    with pytest.raises(InputError, match=r"float16.*`k_sigma`"):
        gptq_quantize(weight, torch.eye(32), sdclip_scale(weight, 12.85, 31), 31)
