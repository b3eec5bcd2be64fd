"""Low-rank corrections and int8 gates against references in numpy and plain Python."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.artifact import decode_model, encode_model, layout_of, matrices, parameter_shapes, unpack_model
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.gptq import weighted_error
from pgolf.quant.lqer import (
    asymmetric,
    correction,
    factor_shapes,
    largest_errors,
    lqer_factors,
    quantize_factors,
    symmetric,
)
from pgolf.quant.policy import resolve
from pgolf.quant.quantize import entropy, quantize_model
from pgolf.quant.rate import correction_bytes, predicted_bytes
from pgolf.quant.state import corrected_names, restore, split_key
from pgolf.quant.summary import class_rows, kept_weights, lqer_rows, quantize_metrics

MODEL = ModelConfig(
    layers=3, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel="lanes", parallel_from=2,
    loop_start=1, loop_end=1, loop_runs=2, attn_gate="sparse", smear="window",
)  # fmt: skip
VOCAB = 40
TOKENIZER = "ab" * 32


def scheme(**lqer):
    return QuantizeConfig(embed=GridConfig(bits=7), small_numel=200, gate_int8=True, lqer=LqerConfig(**lqer))


def random_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator) * math.exp(torch.randn((), generator=generator).item())
        for name, shape in parameter_shapes(MODEL, VOCAB).items()
    }
    hessians = {}
    for name, source in matrix_inputs(MODEL).items():
        if source not in hessians:
            X = torch.randn(80, state[name].size(1), generator=generator)
            hessians[source] = X.mT @ X
    return state, hessians


def quantized(config, seed=0, report=lambda _: None):
    return quantize_model(*random_state(seed), matrix_inputs(MODEL), config, report)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (3, 30), (7, 7)])
@pytest.mark.parametrize("rank", [1, 4, 50])
def test_factors_are_the_best_approximation_of_their_rank(shape, rank):
    E = normal(*shape)
    A, B = (factor.double().numpy() for factor in lqer_factors(E, rank))
    U, S, Vt = np.linalg.svd(E.double().numpy(), full_matrices=False)
    r = min(rank, *shape)
    assert (A.shape, B.shape) == ((shape[0], r), (r, shape[1]))
    assert np.allclose(A @ B, (U[:, :r] * S[:r]) @ Vt[:r], atol=1e-5)
    assert np.allclose(B @ B.T, np.eye(r), atol=1e-5)  # the singular values are in A
    assert np.allclose(np.linalg.norm(A, axis=0), S[:r], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(2, 12))
def test_error_falls_with_the_rank_and_vanishes_at_full_rank(seed, m, n):
    E = normal(m, n, seed=seed)
    left = [E.norm().item()]
    for rank in range(1, min(m, n) + 1):
        A, B = lqer_factors(E, rank)
        left.append((E - A @ B).norm().item())
    assert all(after <= before + 1e-5 for before, after in pairwise(left))
    assert left[-1] < 1e-4 * left[0]


def half(value):
    return np.float16(value)


def nearest(value):
    """Ties to even, exactly."""
    return round(Fraction(float(value)))


def slow_asymmetric(A, B, group):
    """Asymmetric codes of PR 1855, element by element."""
    sA = half(np.float32(np.abs(A).max()) / np.float32(1.5))
    qA = [[max(-2, min(1, nearest(np.float32(a) / np.float32(sA)))) for a in row] for row in A]
    flat, sB, qB = B.reshape(-1), [], []
    for start in range(0, len(flat), group):
        part = flat[start : start + group]
        scale = half(np.float32(np.abs(part).max()) / np.float32(7.5))
        sB.append(scale)
        qB += [max(-8, min(7, nearest(np.float32(b) / np.float32(scale)))) for b in part]
    return qA, sA, np.reshape(qB, B.shape).tolist(), sB


def slow_symmetric(X, clip):
    scales = [half(np.float32(np.abs(row).max()) / np.float32(clip)) for row in X]
    codes = [
        [max(-clip, min(clip, nearest(np.float32(x) / np.float32(s)))) for x in row]
        for row, s in zip(X, scales, strict=True)
    ]
    return codes, scales


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([(1, 8, 4), (4, 16, 64), (4, 16, 16), (3, 8, 24)]))
def test_asymmetric_factors_equal_the_slow_twin(seed, m, sizes):
    r, n, group = sizes
    A, B = normal(m, r, seed=seed), 0.02 * normal(r, n, seed=seed + 1)
    qA, sA, qB, sB = asymmetric(A, B, group)
    expected = slow_asymmetric(A.numpy(), B.numpy(), group)
    assert (qA.tolist(), sA.numpy(), qB.tolist(), list(sB.numpy())) == expected
    assert (qA.dtype, sA.dtype, qB.dtype, sB.dtype) == (torch.int8, torch.float16) * 2
    assert (sA.shape, sB.shape) == ((), (r * n // group,))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 4), st.sampled_from([1, 7, 127]))
def test_symmetric_factors_equal_the_slow_twin(seed, m, r, clip):
    A, B = normal(m, r, seed=seed), 0.02 * normal(r, 12, seed=seed + 1)
    qA, sA, qB, sB = symmetric(A, B, clip)
    assert (qA.tolist(), list(sA.numpy())) == slow_symmetric(A.numpy(), clip)
    assert (qB.tolist(), list(sB.numpy())) == slow_symmetric(B.numpy(), clip)
    assert (qA.dtype, sA.dtype, sA.shape, sB.shape) == (torch.int8, torch.float16, (m,), (r,))


def test_asymmetric_grids_clip_the_positive_extreme_only():
    A = torch.tensor([[3.0, -3.0, 1.0, -1.0, 2.9, -2.0]])  # sA = 2
    B = torch.tensor([[7.5, -7.5, 7.0, 0.5], [1.5, -0.75, 0.0, 0.1]])  # scales 1 and 0.2
    qA, sA, qB, sB = asymmetric(A, B, 4)
    assert (qA.tolist(), sA.item()) == ([[1, -2, 0, 0, 1, -1]], 2.0)
    assert qB.tolist() == [[7, -8, 7, 0], [7, -4, 0, 1]]
    assert sB.tolist() == [1.0, np.float16(0.2)]


@pytest.mark.parametrize("config", [LqerConfig(group=4), LqerConfig(asymmetric=False)])
def test_no_error_gives_no_correction_and_no_nan(config):
    stored = quantize_factors(*lqer_factors(torch.zeros(6, 4), 4), config)
    low_rank = correction({f"w{suffix}": tensor for suffix, tensor in stored.items()}, "w")
    assert torch.equal(low_rank, torch.zeros(6, 4))
    assert correction(stored, "v") is None


def test_error_beyond_float16_is_refused():
    for config in (LqerConfig(group=4), LqerConfig(asymmetric=False)):
        with pytest.raises(InputError, match=r"float16.*`k_sigma`"):
            quantize_factors(1e6 * normal(6, 2), normal(2, 4), config)


def test_shapes_of_the_published_correction():
    published = LqerConfig(top_k=3)
    assert factor_shapes((8192, 512), published) == {
        ".lqA_a": ("int8", (8192, 4)), ".lqAs_a": ("float16", ()),
        ".lqB_a": ("int8", (4, 512)), ".lqBs_a": ("float16", (32,)),
    }  # fmt: skip
    symmetric_shapes = {
        ".lqA": ("int8", (30, 4)), ".lqAs": ("float16", (30,)), ".lqB": ("int8", (4, 20)), ".lqBs": ("float16", (4,)),
    }  # fmt: skip
    assert factor_shapes((30, 20), published) == symmetric_shapes  # 4 x 20 is no multiple of 64
    assert factor_shapes((30, 16), published)[".lqBs_a"] == ("float16", (1,))
    assert factor_shapes((30, 16), LqerConfig(asymmetric=False))[".lqB"] == ("int8", (4, 16))
    assert factor_shapes((30, 2), published)[".lqA"] == ("int8", (30, 2))  # the rank is at most that of the matrix


def test_largest_errors_are_ranked_and_ties_go_to_the_first():
    norms = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0, "e": 2.0}
    assert largest_errors(norms, 2) == ["b", "d"]
    assert largest_errors(norms, 3) == ["b", "d", "c"]
    assert largest_errors(norms, 0) == []
    assert largest_errors(norms, 9) == ["b", "d", "c", "e", "a"]


def by_hand(stored, name):
    """W^ of one matrix in float64, from its stored keys."""
    array = {key.removeprefix(name): tensor.double().numpy() for key, tensor in stored.items() if key.startswith(name)}
    W = array[".q"] * array[".scale"][:, None]
    if ".lqA_a" in array:
        sB = np.repeat(array[".lqBs_a"], array[".lqB_a"].size // array[".lqBs_a"].size).reshape(array[".lqB_a"].shape)
        W = W + (array[".lqA_a"] * array[".lqAs_a"]) @ (array[".lqB_a"] * sB)
    elif ".lqA" in array:
        W = W + (array[".lqA"] * array[".lqAs"][:, None]) @ (array[".lqB"] * array[".lqBs"][:, None])
    return W


@pytest.mark.parametrize("config", [scheme(top_k=3), scheme(top_k=3, asymmetric=False), scheme(top_k=3, group=96)])
def test_the_matrices_with_the_largest_error_are_corrected(config):
    state, hessians = random_state()
    plain, done = quantized(scheme()), quantized(config)
    names = matrices(parameter_shapes(MODEL, VOCAB), config)
    errors = {name: np.linalg.norm(state[name].double().numpy() - by_hand(plain.tensors, name)) for name in names}
    expected = set(sorted(names, key=errors.__getitem__)[-3:])
    assert corrected_names(done.tensors) == expected
    for key, tensor in plain.tensors.items():  # the codes stay as they are
        assert torch.equal(tensor, done.tensors[key]), key
    extra = set(done.tensors) - set(plain.tensors)
    assert {split_key(key)[0] for key in extra} == expected
    restored = restore(done.tensors)
    for report in done.reports:
        name = report.name
        W, H = state[name], hessians[matrix_inputs(MODEL)[name]]
        assert np.allclose(restored[name].numpy(), by_hand(done.tensors, name), atol=1e-5)
        assert report.relative_error == pytest.approx(
            weighted_error(W - restored[name], H) / weighted_error(W, H), rel=1e-5
        )
        before = weighted_error(W - torch.from_numpy(by_hand(plain.tensors, name)).float(), H) / weighted_error(W, H)
        assert report.rounding_error == pytest.approx(before, rel=1e-5)
        if name in expected:
            assert (W - restored[name]).norm() < errors[name]
            parts = [done.tensors[key] for key in extra if split_key(key)[0] == name]
            bits = sum(t.numel() * (entropy(t) if t.dtype == torch.int8 else 16) for t in parts)
            assert report.lqer_bytes == math.ceil(bits / 8)
        else:
            assert (report.lqer_bytes, report.relative_error) == (0, report.rounding_error)


def test_more_corrections_than_matrices_correct_all_of_them():
    config = scheme(top_k=1000)
    assert corrected_names(quantized(config).tensors) == set(matrices(parameter_shapes(MODEL, VOCAB), config))


def test_corrections_are_reported_and_summarised():
    told = []
    done = quantized(scheme(top_k=2), report=told.append)
    assert len(told) == len(done.reports) + 2
    assert {report.name: report for report in told} == {report.name: report for report in done.reports}
    rows = lqer_rows(done.reports)
    assert {row[0] for row in rows} == {report.name for report in told[-2:]}
    metrics = quantize_metrics(done.reports)
    assert metrics["lqer_tensors"] == 2
    assert metrics["lqer_bytes"] == sum(row[1] for row in rows) > 0
    weights = sum(report.numel for report in done.reports)
    for key, field in (("rounding_error", "rounding_error"), ("weighted_error", "relative_error")):
        mean = sum(getattr(report, field) * report.numel for report in done.reports) / weights
        assert metrics[key] == pytest.approx(mean, rel=1e-12)
    assert metrics["weighted_error"] < metrics["rounding_error"]
    kept = kept_weights(done.tensors)
    total = sum(math.prod(shape) for shape in parameter_shapes(MODEL, VOCAB).values())
    assert kept["gate"] == 3 * 4 * 12
    assert weights + sum(kept.values()) == total
    assert {row[0]: row[1:3] for row in class_rows(done.reports, kept)}["gate"] == (144, 8)


@pytest.mark.parametrize("config", [scheme(top_k=3), scheme(top_k=2, asymmetric=False), scheme(top_k=4, group=256)])
@pytest.mark.parametrize("codec", ["brotli", "zstd"])
def test_container_round_trip_is_bit_exact_and_decodes_to_the_restored_model(config, codec):
    stored = quantized(config).tensors
    blob = encode_model(stored, MODEL, VOCAB, config, TOKENIZER, codec)
    header, tensors = unpack_model(blob)
    assert set(tensors) == set(stored)
    for key, tensor in stored.items():
        found = tensors[key]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.numpy().tobytes() == tensor.numpy().tobytes(), key
    names = matrices(parameter_shapes(MODEL, VOCAB), config)
    assert {names[index] for index in header["lqer"]} == corrected_names(stored)
    state, expected = decode_model(blob, torch.device("cpu"), torch.float32)[0].state_dict(), restore(stored)
    assert set(state) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())


def test_layout_holds_exactly_the_stored_tensors():
    config = scheme(top_k=3, group=256)
    stored = quantized(config).tensors
    layout = layout_of(parameter_shapes(MODEL, VOCAB), config, corrected_names(stored))
    kinds = {f".{dtype}": getattr(torch, dtype) for dtype in ("int8", "float16")}
    found = {entry.key: (kinds[f".{entry.dtype}"], entry.shape) for entry in layout}
    assert found == {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in stored.items()}
    suffixes = {split_key(key)[1] for key in stored}
    assert {".lqA_a", ".lqA", ".gq"} <= suffixes, "the case must hold both kinds of factors"
    groups = {split_key(entry.key)[1]: entry.group for entry in layout}
    assert (groups[".lqA"], groups[".lqB_a"], groups[".gq"], groups[""]) == ("lqer", "lqer", "gates", "small")
    assert {groups[".scale"], groups[".gs"], groups[".lqAs_a"], groups[".lqBs"]} == {"scales"}


def test_tensors_that_do_not_fit_the_scheme_are_refused():
    config = scheme(top_k=2)
    stored = quantized(config).tensors
    with pytest.raises(InputError, match=r"must list 0 matrices.*`lqer.top_k` is 0"):
        encode_model(stored, MODEL, VOCAB, scheme(), TOKENIZER, "brotli")
    less = {key: tensor for key, tensor in stored.items() if not key.endswith(".lqBs_a")}
    with pytest.raises(InputError, match="lqBs_a` of the layout is missing"):
        encode_model(less, MODEL, VOCAB, config, TOKENIZER, "brotli")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.attn.attn_gate_w", (8, 12), "gate"),
        ("blocks.0.attn.attn_gate_w", (2, 16), "gate"),
        ("blocks.0.attn.attn_gate_w", (1, 31), "small"),
        ("blocks.0.attn.attn_gate_w", (16, 512), "gate"),  # 8192, above the `small_numel` of this test
        ("blocks.0.attn.attn_gate_w", (32,), "small"),
        ("blocks.0.attn.attn_gate_w", (4, 4, 4), "small"),
        ("blocks.0.attn.attn_gate", (8, 12), "small"),
        ("blocks.0.attn_gate_w", (8, 12), "gate"),
        ("attn_gate_w", (8, 12), "small"),
        ("smear_gate.weight", (1, 12), "small"),
        ("smear_lambda", (1,), "small"),
        ("parallel_post_lambdas", (11, 2, 2), "small"),
        ("parallel_resid_lambdas", (11, 2), "small"),
    ],
)
def test_gates_are_found_first_by_name_rank_and_size(name, shape, expected):
    config = QuantizeConfig(gate_int8=True, small_numel=100)
    assert resolve({name: shape}, config)[name] == (expected, None)
    if math.prod(shape) <= 100:
        assert resolve({name: shape}, QuantizeConfig(small_numel=100))[name] == ("small", None)


def test_gate_beyond_the_sizes_is_treated_like_any_other_tensor():
    shapes = {"blocks.0.attn.attn_gate_w": (1, 8193)}
    assert resolve(shapes, QuantizeConfig(gate_int8=True))["blocks.0.attn.attn_gate_w"].tensor_class == "small"


def test_every_tensor_of_the_model_has_a_class():
    published = ModelConfig(attn_gate="sparse", smear="window", parallel="lanes", parallel_from=8)
    shapes = parameter_shapes(published, 8192)
    assert sum(math.prod(shape) for shape in shapes.values()) == 35_945_671
    for gates in (False, True):
        plan = resolve(shapes, QuantizeConfig(gate_int8=gates))
        assert {name for name, rule in plan.items() if rule.grid} == set(matrix_inputs(published))
        weights = {"gate": 0, "small": 0}
        for name, rule in plan.items():
            if not rule.grid:
                weights[rule.tensor_class] += math.prod(shapes[name])
        assert weights["gate"] == gates * 11 * 8 * 12
        assert sum(weights.values()) == 35_945_671 - 35_913_728


def test_gates_are_int8_rows():
    state, _ = random_state()
    done = quantized(scheme())
    name = "blocks.1.attn.attn_gate_w"
    codes, scales = slow_symmetric(state[name].numpy(), 127)
    assert (done.tensors[f"{name}.gq"].tolist(), list(done.tensors[f"{name}.gs"].numpy())) == (codes, scales)
    restored = restore(done.tensors)[name]
    assert restored.dtype == torch.float32
    assert restored.tolist() == [[q * float(s) for q in row] for row, s in zip(codes, scales, strict=True)]
    assert name not in done.tensors
    plain = quantized(QuantizeConfig(small_numel=200)).tensors
    assert torch.equal(plain[name], state[name].half())


def test_gate_that_is_not_finite_is_refused():
    state, hessians = random_state()
    state["blocks.1.attn.attn_gate_w"][0, 0] = float("inf")
    with pytest.raises(InputError, match=r"^blocks\.1\.attn\.attn_gate_w: .*train again"):
        quantize_model(state, hessians, matrix_inputs(MODEL), scheme())


def test_predicted_bytes_count_corrections_and_gates():
    shapes = {
        "tok_emb.weight": (8192, 512),
        "blocks.0.mlp.fc.weight": (2048, 512),
        "blocks.0.attn.attn_gate_w": (8, 12),
    }
    plain, gates = (predicted_bytes(shapes, QuantizeConfig(gate_int8=gate)) for gate in (False, True))
    assert plain - gates == 2 * 96 - (96 + 2 * 8)
    embed, mlp = 8192 * 4 * 2 / 8 + 2 + 2048 * 4 / 8 + 64, 2048 * 4 * 2 / 8 + 2 + 2048 * 4 / 8 + 64
    for top_k, expected in ((1, embed), (2, embed + mlp), (9, embed + mlp)):
        config = QuantizeConfig(gate_int8=True, lqer=LqerConfig(top_k=top_k))
        assert predicted_bytes(shapes, config) - gates == expected
    assert correction_bytes((30, 20), LqerConfig(factor_bits=5)) == (120 + 80) * 5 / 8 + 2 * (30 + 4)


@pytest.mark.parametrize(
    ("key", "value"), [("top_k", -1), ("rank", 0), ("group", 0), ("factor_bits", 1), ("factor_bits", 9)]
)
def test_lqer_refuses_by_key_and_value(key, value):
    with pytest.raises(InputError, match=rf"`{key}` is {value};"):
        LqerConfig(**{key: value})
