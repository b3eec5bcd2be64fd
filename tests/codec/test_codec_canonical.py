"""Permuted models compute the same function, and cost less."""

import math

import numpy as np
import pytest

from pgolf.codec.canonical import canonical_order
from pgolf.codec.container import pack, unpack
from pgolf.codec.layout import Entry
from pgolf.codec.series import grid

HEADS, KV, SIZE, DIM, HIDDEN, ROTARY = 4, 2, 8, 16, 40, 4


def weights(random):
    shapes = {"c_q": (HEADS * SIZE, DIM), "c_k": (KV * SIZE, DIM), "c_v": (KV * SIZE, DIM), "proj": (DIM, HEADS * SIZE)}
    shapes = {f"attn.{role}": shape for role, shape in shapes.items()}
    shapes |= {"mlp.fc": (HIDDEN, DIM), "mlp.proj": (DIM, HIDDEN)}
    stored = {}
    for role, shape in shapes.items():
        name = f"blocks.0.{role}.weight"
        stored[f"{name}.q"] = random.integers(-31, 31, shape, np.int8)
        stored[f"{name}.scale"] = random.lognormal(-3, 0.3, shape[0]).astype(np.float16)
    stored["blocks.0.mlp.fc.weight.lqA_a"] = random.integers(-2, 2, (HIDDEN, 3), np.int8)
    stored["blocks.0.mlp.fc.weight.lqB_a"] = random.integers(-8, 8, (3, DIM), np.int8)
    return stored


def function(stored, x):
    """Scores, attention output and MLP output of one block, without softmax, normalisation and rotation."""

    def full(role):
        name = f"blocks.0.{role}.weight"
        weight = stored[f"{name}.q"].astype(float) * stored[f"{name}.scale"].astype(float)[:, None]
        if f"{name}.lqA_a" in stored:
            weight = weight + stored[f"{name}.lqA_a"].astype(float) @ stored[f"{name}.lqB_a"] * 0.01
        return weight

    q = (x @ full("attn.c_q").T).reshape(len(x), HEADS, SIZE)
    k = (x @ full("attn.c_k").T).reshape(len(x), KV, SIZE).repeat(HEADS // KV, axis=1)
    v = (x @ full("attn.c_v").T).reshape(len(x), KV, SIZE).repeat(HEADS // KV, axis=1)
    scores = np.einsum("thd,shd->hts", q, k)
    rotary = np.einsum("thd,shd->hts", q[..., :ROTARY], k[..., :ROTARY])
    mixed = np.einsum("hts,shd->thd", scores, v).reshape(len(x), -1)
    hidden = np.square(np.maximum(x @ full("mlp.fc").T, 0))
    return scores, rotary, mixed @ full("attn.proj").T, hidden @ full("mlp.proj").T


def test_the_function_stays_and_scales_fall():
    random = np.random.default_rng(0)
    stored = weights(random)
    moved = canonical_order(stored, HEADS, KV, ROTARY)
    assert set(moved) == set(stored)
    assert any((moved[key] != stored[key]).any() for key in stored)
    x = random.normal(size=(5, DIM))
    for before, after in zip(function(stored, x), function(moved, x), strict=True):
        assert np.allclose(before, after, rtol=1e-9)
    assert (np.diff(moved["blocks.0.mlp.fc.weight.scale"].astype(float)) <= 0).all()
    for part in moved["blocks.0.attn.c_v.weight.scale"].reshape(KV, SIZE).astype(float):
        assert (np.diff(part) <= 0).all()
    again = canonical_order(moved, HEADS, KV, ROTARY)
    assert all((again[key] == moved[key]).all() for key in moved)


@pytest.mark.parametrize("name", ["mlp.proj", "attn.proj"])
def test_columns_that_belong_to_groups_of_a_correction_stay(name):
    stored = weights(np.random.default_rng(1))
    stored[f"blocks.0.{name}.weight.lqB_a"] = np.zeros((2, stored[f"blocks.0.{name}.weight.q"].shape[1]), np.int8)
    moved = canonical_order(stored, HEADS, KV, ROTARY)
    for key in (f"blocks.0.{name}.weight.q", "blocks.0.mlp.fc.weight.q", "blocks.0.attn.c_v.weight.q"):
        assert (moved[key] != stored[key]).any() == (("mlp" in key) != ("mlp" in name))


@pytest.mark.parametrize("steps", [2, 8, 32, -2, -5, -8])
def test_numbers_on_a_grid_cost_their_entropy(steps):
    scale = np.random.default_rng(2).lognormal(-3, 0.3, 2000).astype(np.float16)
    points = grid(steps).view(np.float16)
    points = np.sort(points[points > 0])
    coarse = points[np.searchsorted(points[1:], scale)]
    assert (coarse != scale).any()
    layout = [Entry("scales", "w.scale", "float16", (2000,))]
    blob = pack({}, layout, {"w.scale": coarse}, "gauss")
    assert unpack(blob, lambda _: layout)[1]["w.scale"].tobytes() == coarse.tobytes()
    counts = np.unique(coarse, return_counts=True)[1]
    entropy = (counts * np.log2(2000 / counts)).sum() / 8
    assert len(blob) < 1.05 * entropy + 120


def test_falling_scales_cost_less_by_the_logarithm_of_their_orders():
    scale = np.random.default_rng(3).lognormal(-3, 0.3, 2048).astype(np.float16)
    layout = [Entry("scales", "w.scale", "float16", (2048,))]
    sizes = []
    for values in (scale, np.sort(scale)[::-1].copy(), np.sort(scale.reshape(4, -1))[:, ::-1].ravel()):
        blob = pack({}, layout, {"w.scale": values}, "gauss")
        assert unpack(blob, lambda _: layout)[1]["w.scale"].tobytes() == values.tobytes()
        sizes.append(len(blob))
    orders = math.lgamma(2049) / math.log(2) / 8
    assert 0.75 * orders < sizes[0] - sizes[1] < orders
    assert sizes[1] < sizes[2] < sizes[0]
