"""Matrices whose rows differ in energy as their scales tell: the coder needs what a coder that knows them needs."""

import math

import numpy as np
import pytest

from pgolf.codec.container import pack, stream_sizes, unpack
from pgolf.codec.layout import Entry

HEADER = {"model": {"heads": 4}}
ROLES = ["tok_emb", "attn.proj", "mlp.fc"]


def model(role, spread, rows=192, columns=64, layers=2, seed=0):
    """Codes of Gaussian weights of equal deviation, with steps between 1/3 and 3 of the middle one; and their cost."""
    random, layout, tensors, bits = np.random.default_rng(seed), [], {}, 0.0
    for layer in range(1 if role == "tok_emb" else layers):
        scale = (0.25 * np.exp(spread * random.uniform(-1, 1, rows))).astype(np.float16)
        step = scale.astype(np.float64)[:, None]
        codes = np.rint(random.normal(size=(rows, columns)) / step).astype(np.int8)
        edges = (codes + np.array([-0.5, 0.5])[:, None, None]) * step
        below, above = 0.5 * (1 + np.vectorize(math.erf)(edges / math.sqrt(2)))
        bits -= np.log2(above - below).sum()
        key = f"{role}.{layer}.{role}.weight"
        layout += [Entry(role, f"{key}.q", "int8", codes.shape), Entry("scales", f"{key}.scale", "float16", (rows,))]
        tensors |= {f"{key}.q": codes, f"{key}.scale": scale}
    return sorted(layout, key=lambda entry: entry.group == "scales"), tensors, bits / 8


def size(layout, tensors, role):
    """Bytes of the codes; `pack` itself unpacks what it wrote and compares."""
    return stream_sizes(pack(HEADER, layout, tensors, "gauss"), lambda _: layout)[role].packed


@pytest.mark.parametrize("role", ROLES)
def test_scales_tell_the_energies_of_rows(role):
    layout, tensors, ideal = model(role, math.log(3))
    told = size(layout, tensors, role)
    silent = {key: np.ones_like(t) if key.endswith("scale") else t for key, t in tensors.items()}
    assert told < 1.03 * ideal + 300
    assert told < size(layout, silent, role) - 0.01 * ideal


@pytest.mark.parametrize("role", ["tok_emb", "mlp.fc"])
def test_scales_that_tell_nothing_are_not_listened_to(role):
    """Rows of equal code energy, as SDClip's, under scales that differ: as cheap as under equal scales."""
    layout, tensors, _ = model(role, 0.0)
    random = np.random.default_rng(5)
    other = {
        key: (t * np.exp(random.normal(size=t.shape))).astype(np.float16) if key.endswith("scale") else t
        for key, t in tensors.items()
    }
    assert size(layout, other, role) < size(layout, tensors, role) * 1.01 + 100


def test_scales_beyond_sense_are_not_listened_to():
    layout, tensors, _ = model("mlp.fc", math.log(3), layers=1)
    tensors["mlp.fc.0.mlp.fc.weight.scale"][:4] = 0.0, math.inf, math.nan, -1.0
    found = unpack(pack(HEADER, layout, tensors, "gauss"), lambda _: layout)[1]
    assert all(found[key].tobytes() == tensor.tobytes() for key, tensor in tensors.items())
