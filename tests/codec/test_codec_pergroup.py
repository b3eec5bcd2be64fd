"""The published ordering: its bytes, its walk against a plain one, and every tensor back."""

import struct
from itertools import pairwise

import brotli
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec import pergroup
from pgolf.codec.pergroup import ROLES, pack_pergroup, similar_rows, unpack_pergroup
from pgolf.errors import InputError


def plain_order(codes):
    order, left = [0], list(range(1, len(codes)))
    while left:
        distance = [sum(abs(int(a) - int(b)) for a, b in zip(codes[order[-1]], codes[i], strict=True)) for i in left]
        order.append(left.pop(distance.index(min(distance))))
    return order


def model(random, layers=11, roles=tuple(ROLES), spread=31):
    tensors = {}
    for role in roles:
        names = ["tok_emb"] if role == "tok_emb" else [f"blocks.{layer}.{role}" for layer in range(layers)]
        for name in names:
            rows, columns = (int(n) for n in random.integers(1, 14, 2))
            tensors[f"{name}.weight.q"] = random.integers(-spread, spread + 1, (rows, columns), np.int8)
            tensors[f"{name}.weight.scale"] = random.normal(0, 1, rows).astype(np.float16)
    tensors["blocks.0.mlp.fc.weight.lqA"] = random.integers(-1, 2, (6, 2), np.int8)
    tensors["blocks.0.attn.gate.gq"] = random.integers(-127, 128, (3, 12), np.int8)
    tensors["skip"] = random.normal(0, 1, (2, 5)).astype(np.float32)
    tensors["gain"] = np.array(0.5, np.float16)
    return tensors


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0, 1, 127]))
def test_rows_walk_to_the_nearest_unused_one(seed, rows, columns, spread):
    codes = np.random.default_rng(seed).integers(-spread, spread + 1, (rows, columns), np.int8)  # 0, 1: many ties
    assert similar_rows(codes).tolist() == plain_order(codes)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 31]), st.sets(st.sampled_from(tuple(ROLES))))
def test_every_tensor_comes_back(seed, spread, roles):
    tensors = model(np.random.default_rng(seed), roles=tuple(roles), spread=spread)
    blob = pack_pergroup(tensors, {"bits": 6})
    found, meta = unpack_pergroup(blob)
    assert meta == {"bits": 6}
    assert list(found) == sorted(tensors)
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert found[key].tobytes() == tensor.tobytes()
    sizes = struct.unpack_from("<9I", blob, 8)
    assert [size == 0 for size in sizes] == [role not in roles for role in ROLES] + [False] * 2


def test_header_streams_and_permutations_are_the_published_ones(monkeypatch):
    monkeypatch.setattr(pergroup.shutil, "which", lambda _: None)
    tensors = model(np.random.default_rng(1))
    blob = pack_pergroup(tensors, None)
    assert blob[:8] == bytes.fromhex("50 47 52 50 09 00 00 00")
    sizes = struct.unpack_from("<9I", blob, 8)
    ends = np.cumsum([44, *sizes])
    streams = [brotli.decompress(blob[a:b]) for a, b in pairwise(ends)]
    assert ends[-1] == len(blob)
    order = [tensors["tok_emb.weight.q"]]
    order += [tensors[f"blocks.{layer}.attn.c_q.weight.q"] for layer in range(11)]  # 2 before 10
    order += [tensors[f"blocks.{layer}.mlp.fc.weight.q"] for layer in range(11)]
    assert streams[8] == b"".join(np.array(plain_order(codes), "<u2").tobytes() for codes in order)
    fc = [tensors[f"blocks.{layer}.mlp.fc.weight.q"] for layer in range(11)]
    assert streams[5] == b"".join(codes[plain_order(codes)].T.tobytes() for codes in fc)
    keys = [tensors[f"blocks.{layer}.attn.c_k.weight.q"] for layer in range(11)]
    assert streams[1] == b"".join(codes.T.tobytes() for codes in keys)


def test_lrzip_is_needed_only_for_its_own_streams(monkeypatch):
    tensors = model(np.random.default_rng(2), layers=1)
    calls = []

    def lrzip(data, options):
        calls.append(options)
        return b"LRZI" + data if "-z" in options else data[4:]

    monkeypatch.setattr(pergroup, "_lrzip", lrzip)
    monkeypatch.setattr(pergroup.shutil, "which", lambda _: "lrzip")
    blob = pack_pergroup(tensors, None)
    found, _ = unpack_pergroup(blob)
    assert all((found[key] == tensor).all() for key, tensor in tensors.items())
    assert calls == [["-z", "-L", "9"]] * len(ROLES) + [["-d"]] * len(ROLES)
    monkeypatch.setattr(pergroup.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match="apt install lrzip"):
        unpack_pergroup(blob)


def test_damage_is_refused():
    blob = pack_pergroup(model(np.random.default_rng(3), layers=1), None)
    for case in (b"", blob[:30], blob[:-1], blob + b"x", b"PGLF" + blob[4:], blob[:44] + bytes(len(blob) - 44)):
        with pytest.raises(InputError, match="write it again"):
            unpack_pergroup(case)
    with pytest.raises(InputError, match="at most 65536"):
        pack_pergroup({"tok_emb.weight.q": np.zeros((65537, 1), np.int8)}, None)
