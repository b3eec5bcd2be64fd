"""What docs/codec.md says is enough for a second decoder: `second_decoder` reads what ours wrote."""

import math

import numpy as np
import pytest
import second_decoder
import test_codec_entropy
import test_codec_rows

from pgolf.codec import entropy
from pgolf.codec.canonical import canonical_order
from pgolf.codec.choose import silent
from pgolf.codec.gaussian import normal_cells
from pgolf.codec.layout import Entry, by_group
from pgolf.codec.series import grid


def agree(layout, tensors, heads):
    """Both decoders find the tensors; returns the parts of the format that were met."""
    groups = by_group(layout)
    streams = entropy.encode(entropy.model_groups(groups, tensors, heads, silent), groups, silent)
    assert set(streams) == set(groups)
    plain = {group: [(e.key, e.dtype, e.shape) for e in entries] for group, entries in groups.items()}
    second_decoder.TAKEN.clear()
    found = second_decoder.decode(streams, plain, heads)
    assert set(found) == set(tensors)
    for key, tensor in tensors.items():
        bits = tensor.view(np.uint16) if tensor.dtype == np.float16 else tensor
        assert found[key] == bits.ravel().tolist(), key
    return second_decoder.TAKEN


def test_the_table():
    assert normal_cells().tolist() == second_decoder.T


def family(random):
    """A model of two layers whose embedding has near-duplicates, some of them neighbours by scale."""
    layout, tensors = test_codec_entropy.model(random, layers=2, dim=16, hidden=24, vocab=150, correlation=1.0)
    codes, scale = tensors["tok_emb.weight.q"], tensors["tok_emb.weight.scale"]
    codes[:] = random.integers(-31, 32, codes.shape)
    for first, last in ((0, 60), (20, 120)):
        codes[last : last + 20] = codes[first : first + 20]
    scale[60:80], scale[120:140] = scale[:20], np.sort(scale)[:20]
    return layout, tensors


def test_matrices_and_the_embedding():
    layout, tensors = family(np.random.default_rng(21))
    taken = agree(layout, tensors, 4)
    assert {"partners from attn.c_k", "partners from attn.c_v", "partners from mlp.fc"} <= taken
    assert {"parent 1", "parent 1 in the block", "lanes carry", "low bits"} <= taken


def test_canonical_orders_and_gridded_scales():
    random = np.random.default_rng(22)
    layout, tensors = test_codec_entropy.model(random, layers=1, dim=64, hidden=64, vocab=8, bits=3, k_sigma=3.0)
    powers = grid(8).view(np.float16)
    for key, tensor in tensors.items():
        if key.endswith("scale"):
            tensors[key] = powers[np.searchsorted(powers, tensor).clip(0, len(powers) - 1)]
    taken = agree(layout, canonical_order(tensors, 4, 2, 0), 4)
    assert {"1 falling runs", "grid 2"} <= taken


def test_vectors():
    random = np.random.default_rng(23)
    vectors = {
        "blocks.0.gain": random.normal(1, 0.2, 150),
        "blocks.1.gain": random.standard_t(2, 150),
        "mix": random.normal(0, 1, (2, 150)),
        "runs": -np.sort(-random.normal(0, 1, (4, 32))).ravel(),
        "odd": np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 6e-8]),
        "one": np.array(0.5),
    }
    tensors = {key: np.asarray(value, np.float16) for key, value in vectors.items()}
    tensors["short"] = (tensors["mix"].view(np.uint16) & 0xFF00).view(np.float16)
    layout = [Entry("small", key, "float16", tensor.shape) for key, tensor in tensors.items()]
    tensors["scale"] = random.lognormal(-3, 0.1, (3, 40)).astype(np.float16)
    taken = agree([Entry("scales", "scale", "float16", (3, 40)), *layout], tensors, 0)
    assert {"4 falling runs", "grid 5", "grid 12", "no low bits", "low bits"} <= taken
    assert len([part for part in taken if part.startswith("tail")]) > 2


@pytest.mark.parametrize("role", test_codec_rows.ROLES)
def test_rows_of_unequal_energies(role):
    layout, tensors, _ = test_codec_rows.model(role, math.log(3), rows=96, columns=24)
    taken = agree(layout, tensors, 4)
    assert "rows of unequal energies" in taken
    assert "lanes carry nothing" in taken
