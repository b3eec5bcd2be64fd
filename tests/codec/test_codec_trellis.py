"""Levels that obey a trellis: their parities cost nothing, and both decoders find them."""

import math

import numpy as np
import pytest
import test_codec_rows
from test_codec_second import agree
from trellis_levels import obedient

from pgolf.codec.container import pack, stream_sizes, unpack
from pgolf.codec.trellis import POLYNOMIALS, SEGMENT, STATES, recognised

HEADER = {"model": {"heads": 4}}


def noise(shape, deviation, seed=0):
    return np.rint(np.random.default_rng(seed).normal(0, deviation, shape)).clip(-120, 120).astype(np.int8)


@pytest.mark.parametrize("states", STATES)
def test_the_states_are_those_of_the_published_parity_checks(states):
    """Every sequence of the code fulfils, modulo 2, sum_i h0_i z0_(t-i) + h1_i z1_(t-i) = 0, in one order of time."""
    r = obedient(noise((1, 200, 3), 6.0), states)[0].astype(int)
    z, h = (r & 1, r >> 1 & 1), POLYNOMIALS[states]
    degree = states.bit_length() - 1

    def checks(backwards):
        sums = 0
        for bits, polynomial in zip(z, h, strict=True):
            for i in range(degree + 1):
                at = i if backwards else degree - i
                sums = sums + (polynomial >> i & 1) * bits[at : len(r) - degree + at]
        return not (sums % 2).any()

    assert checks(True) != checks(False)


@pytest.mark.parametrize("states", STATES)
def test_what_obeys_is_recognised_up_to_the_last_row(states):
    levels = obedient(noise((2, SEGMENT + 9, 4), 5.0), states)
    assert recognised(levels) == states
    levels[1, -1, 3] ^= 1
    assert recognised(levels) == 0


@pytest.mark.parametrize("group", ["mlp.fc", "attn.c_q"])
def test_parities_cost_nothing(group):
    """Half the step costs what the whole step does: one bit per level less than without the code."""
    free, plain = noise((1, 128, 64), 5.4, seed=1)[0], noise((1, 128, 64), 2.7, seed=2)[0]
    sizes = {}
    for name, codes in {"free": free, "plain": plain, "trellis": obedient(free[None], 8)[0]}.items():
        layout, tensors, _ = test_codec_rows.model(group, 0.0, rows=128, columns=64, layers=1)
        key = layout[0].key
        tensors[key] = codes
        blob = pack(HEADER, layout, tensors, "gauss")
        assert (unpack(blob, lambda _, layout=layout: layout)[1][key] == codes).all()
        sizes[name] = stream_sizes(blob, lambda _, layout=layout: layout)[group].packed
    assert sizes["trellis"] == pytest.approx(sizes["plain"], rel=0.015)
    assert sizes["free"] - sizes["trellis"] == pytest.approx(128 * 64 / 8, rel=0.06)


@pytest.mark.parametrize(("group", "rows"), [("mlp.fc", 40), ("attn.proj", 24), ("some.other", 520)])
def test_the_second_decoder_reads_them(group, rows):
    columns = 24 if rows < 100 else 3
    layout, tensors, _ = test_codec_rows.model(group, math.log(2), rows=rows, columns=columns)
    for key in tensors:
        if key.endswith(".q"):
            tensors[key] = obedient(tensors[key][None], 64)[0]
    assert "trellis" in agree(layout, tensors, 4)
