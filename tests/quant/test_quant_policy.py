import math

import pytest
import torch

from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.artifact import parameter_shapes
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.gptq import weighted_error
from pgolf.quant.grid import dequantize, round_to_nearest, sdclip_scale
from pgolf.quant.policy import resolve, table
from pgolf.quant.quantize import entropy, quantize_model
from pgolf.quant.summary import class_rows, quantize_metrics

TINY = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=2,
    loop_start=1, loop_end=1, loop_runs=2,
)  # fmt: skip
GRIDS = QuantizeConfig(
    embed=GridConfig(bits=7, k_sigma=14.0), attn=GridConfig(k_sigma=13.0), mlp=GridConfig(bits=5, k_sigma=11.5),
    small_numel=100, blocksize=8,
)  # fmt: skip


def class_by_name(name, shape, small_numel):
    """The published programs' rule: size first, then the first name test that matches."""
    if len(shape) != 2 or math.prod(shape) <= small_numel:
        return "small"
    for text, label in (("tok_emb", "embed"), (".mlp.", "mlp"), (".attn.", "attn")):
        if text in name:
            return label
    return "other"


@pytest.mark.parametrize(
    ("model", "vocab_size", "config"), [(ModelConfig(), 8192, QuantizeConfig()), (TINY, 40, GRIDS)]
)
def test_every_tensor_has_the_class_of_its_name(model, vocab_size, config):
    shapes = parameter_shapes(model, vocab_size)
    plan = resolve(shapes, config)
    assert list(plan) == list(shapes)
    expected = {name: class_by_name(name, shape, config.small_numel) for name, shape in shapes.items()}
    assert {name: rule.tensor_class for name, rule in plan.items()} == expected
    assert "other" not in expected.values()
    grids = {"embed": config.embed, "mlp": config.mlp, "attn": config.attn, "small": None}
    assert all(rule.grid == grids[rule.tensor_class] for rule in plan.values())


def test_published_shapes_have_the_published_weights_per_class():
    shapes = parameter_shapes(ModelConfig(), 8192)
    plan = resolve(shapes, QuantizeConfig())
    weights = dict.fromkeys(("attn", "mlp", "embed", "small"), 0)
    for name, rule in plan.items():
        weights[rule.tensor_class] += math.prod(shapes[name])
    assert weights["attn"] == 8_650_752
    assert weights["mlp"] == 23_068_672
    assert weights["embed"] == 4_194_304
    assert sum(weights.values()) == 35_944_536


def test_classes_do_not_overlap_so_that_their_order_cannot_matter():
    for name in parameter_shapes(TINY, 40):
        assert sum(bool(pattern.search(name)) for _, pattern, _ in table(GRIDS)) <= 1, name


def test_matrices_with_a_grid_are_those_with_a_hessian():
    plan = resolve(parameter_shapes(TINY, 40), GRIDS)
    assert {name for name, rule in plan.items() if rule.grid} == set(matrix_inputs(TINY))


def test_limit_of_small_tensors_is_inclusive():
    shapes = {"blocks.0.mlp.fc.weight": (10, 10)}
    assert resolve(shapes, QuantizeConfig(small_numel=100))["blocks.0.mlp.fc.weight"].grid is None
    assert resolve(shapes, QuantizeConfig(small_numel=99))["blocks.0.mlp.fc.weight"].grid == GridConfig()


def test_limit_too_low_for_a_tensor_without_class_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"`quantize.small_numel` is 10, .* skip_weights .* set it to at least 32"):
        resolve({"tok_emb.weight": (64, 16), "skip_weights": (2, 16)}, QuantizeConfig(small_numel=10))


def random_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(TINY, 40).items()}
    hessians = {}
    for name, source in matrix_inputs(TINY).items():
        if source not in hessians:
            X = torch.randn(80, state[name].size(1), generator=generator)
            hessians[source] = X.mT @ X
    return state, hessians


def test_quantized_model_holds_every_tensor_once_in_the_stored_types():
    state, hessians = random_state()
    done = quantize_model(state, hessians, matrix_inputs(TINY), GRIDS)
    expected = {}
    for name, rule in resolve({name: tuple(t.shape) for name, t in state.items()}, GRIDS).items():
        if rule.grid:
            expected[f"{name}.q"] = (torch.int8, tuple(state[name].shape))
            expected[f"{name}.scale"] = (torch.float16, (state[name].size(0),))
            assert done.tensors[f"{name}.q"].abs().max() <= rule.grid.clip
            assert torch.equal(
                done.tensors[f"{name}.scale"], sdclip_scale(state[name], rule.grid.k_sigma, rule.grid.clip)
            )
        else:
            expected[name] = (torch.float16, tuple(state[name].shape))
            assert torch.equal(done.tensors[name], state[name].half())
    assert {name: (t.dtype, tuple(t.shape)) for name, t in done.tensors.items()} == expected


def test_stored_scale_is_the_one_that_made_the_codes():
    state, _ = random_state()
    identity = {source: torch.eye(state[name].size(1)) for name, source in matrix_inputs(TINY).items()}
    done = quantize_model(state, identity, matrix_inputs(TINY), GRIDS)
    for name, rule in resolve({name: tuple(t.shape) for name, t in state.items()}, GRIDS).items():
        if rule.grid:
            expected = round_to_nearest(state[name], done.tensors[f"{name}.scale"], rule.grid.clip)
            assert torch.equal(done.tensors[f"{name}.q"], expected)


def test_quantization_is_deterministic():
    state, hessians = random_state()
    first, second = (quantize_model(state, hessians, matrix_inputs(TINY), GRIDS) for _ in range(2))
    assert all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())
    assert first.reports == second.reports


def test_reports_tell_entropy_and_error_of_each_matrix():
    state, hessians = random_state()
    told = []
    done = quantize_model(state, hessians, matrix_inputs(TINY), GRIDS, told.append)
    assert told == done.reports
    assert [report.name for report in done.reports] == [name for name in state if name in matrix_inputs(TINY)]
    for report in done.reports:
        W, H = state[report.name], hessians[matrix_inputs(TINY)[report.name]]
        codes, scale = done.tensors[f"{report.name}.q"], done.tensors[f"{report.name}.scale"]
        assert report.numel == W.numel()
        assert report.entropy == entropy(codes)
        expected = weighted_error(W - dequantize(codes, scale), H) / weighted_error(W, H)
        assert report.relative_error == pytest.approx(expected, rel=1e-9)


def test_summary_weights_matrices_by_their_size():
    state, hessians = random_state()
    reports = quantize_model(state, hessians, matrix_inputs(TINY), GRIDS).reports
    metrics = quantize_metrics(reports)
    for suffix, members in (("", reports), ("_mlp", [r for r in reports if r.tensor_class == "mlp"])):
        weights = sum(r.numel for r in members)
        bits = sum(r.entropy * r.numel for r in members) / weights
        assert metrics[f"bits_per_weight_entropy{suffix}"] == pytest.approx(bits, rel=1e-12)
        error = sum(r.relative_error * r.numel for r in members) / weights
        assert metrics[f"weighted_error{suffix}"] == pytest.approx(error, rel=1e-12)
    rows = {row[0]: row for row in class_rows(reports, {"gate": 0, "small": 77})}
    assert set(rows) == {"embed", "attn", "mlp", "small"}
    assert rows["small"][1:3] == (77, 16)
    assert rows["mlp"][1:3] == (3 * 2 * 16 * 32, 5)
    keys, suffixes = ("bits_per_weight_entropy", "weighted_error"), ("", "_embed", "_attn", "_mlp")
    of_lqer = {"rounding_error", "lqer_tensors", "lqer_bytes"}
    assert set(metrics) == {f"{key}{suffix}" for key in keys for suffix in suffixes} | of_lqer
    assert (metrics["lqer_tensors"], metrics["lqer_bytes"]) == (0, 0)
    assert metrics["rounding_error"] == metrics["weighted_error"]


def test_errors_name_the_tensor_and_the_remedy():
    state, hessians = random_state()
    sources = matrix_inputs(TINY)
    without = {name: h for name, h in hessians.items() if name != "blocks.1.mlp.fc"}
    with pytest.raises(InputError, match=r"^blocks\.1\.mlp\.fc\.weight: no Hessian .* run `pgolf calibrate` again"):
        quantize_model(state, without, sources, GRIDS)
    for name, remedy in (("blocks.2.attn.proj.weight", "train again"), ("blocks.0.attn_scale", "train again")):
        broken = {key: tensor.clone() for key, tensor in state.items()}
        broken[name].view(-1)[3] = float("nan")
        with pytest.raises(InputError, match=rf"^{name}: .*{remedy}"):
            quantize_model(broken, hessians, sources, GRIDS)
    large = {key: tensor.clone() for key, tensor in state.items()}
    large["blocks.0.attn_scale"][0] = 1e5  # finite, but not in float16
    with pytest.raises(InputError, match=r"^blocks\.0\.attn_scale: a value is not finite in float16"):
        quantize_model(large, hessians, sources, GRIDS)
    wide = state | {"blocks.0.mlp.fc.weight": state["blocks.0.mlp.fc.weight"] * 1e6}
    with pytest.raises(InputError, match=r"^blocks\.0\.mlp\.fc\.weight: .*float16.*`k_sigma`"):
        quantize_model(wide, hessians, sources, GRIDS)
