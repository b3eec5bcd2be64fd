"""The published ordering: its walk against a plain one, its bytes, every tensor back, and lrzip only where it is."""

import struct

import brotli
import fake_programs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.container import pack, stream_sizes, unpack
from pgolf.codec.layout import Entry, raw_size
from pgolf.codec.pergroup import MOST_ROWS, ROLES, fits, pack_group, similar_rows, unpack_group
from pgolf.errors import InputError


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch, tmp_path):
    fake_programs.hide(monkeypatch, tmp_path)


def plain_order(codes):
    order, left = [0], list(range(1, len(codes)))
    while left:
        distance = [sum(abs(int(a) - int(b)) for a, b in zip(codes[order[-1]], codes[i], strict=True)) for i in left]
        order.append(left.pop(distance.index(min(distance))))
    return order


def model(random, layers=11, roles=tuple(ROLES), spread=31):
    """Layout and tensors: the roles' codes, scales, low-rank factors, gates and vectors."""
    layout, tensors = [], {}
    for role in roles:
        names = ["tok_emb"] if role == "tok_emb" else [f"blocks.{layer}.{role}" for layer in range(layers)]
        for name in names:
            rows, columns = (int(n) for n in random.integers(1, 14, 2))
            tensors[f"{name}.weight.q"] = random.integers(-spread, spread + 1, (rows, columns), np.int8)
            layout.append(Entry(role, f"{name}.weight.q", "int8", (rows, columns)))
    tensors["lqA"] = random.integers(-1, 2, (6, 2), np.int8)
    tensors["gq"] = random.integers(-127, 128, (3, 12), np.int8)
    tensors["skip"] = random.normal(0, 1, (2, 5)).astype(np.float16)
    rest = [("lqer", "lqA"), ("gates", "gq"), ("small", "skip")]
    layout += [Entry(group, key, str(tensors[key].dtype), tensors[key].shape) for group, key in rest]
    return layout, tensors


def similar(random, rows=60, columns=40):
    """Codes that sorting and brotli shrink: a few families of like rows."""
    return (random.integers(-20, 21, (6, columns))[random.integers(0, 6, rows)]).astype(np.int8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5), st.sampled_from([0, 1, 127]))
def test_rows_walk_to_the_nearest_unused_one(seed, rows, columns, spread):
    codes = np.random.default_rng(seed).integers(-spread - 1, spread + 1, (rows, columns), np.int8)  # 0, 1: many ties
    assert similar_rows(codes).tolist() == plain_order(codes)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from([0, 1, 31]), st.sets(st.sampled_from(tuple(ROLES))))
def test_every_tensor_comes_back(seed, spread, roles):
    layout, tensors = model(np.random.default_rng(seed), 3, tuple(roles), spread)
    header, found = unpack(pack({"bits": 6}, layout, tensors, "pergroup"), lambda _: layout)
    assert header == {"bits": 6}
    for key, tensor in tensors.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        assert found[key].tobytes() == tensor.tobytes()
    for entry in layout:
        if entry.group in roles:
            entries = [other for other in layout if other.group == entry.group]
            again = unpack_group(entry.group, entries, pack_group(entry.group, entries, tensors))
            assert again[entry.key].tobytes() == tensors[entry.key].tobytes()


def test_streams_are_the_published_ones():
    layout, tensors = model(np.random.default_rng(1))
    for group, is_sorted in ROLES.items():
        entries = [entry for entry in layout if entry.group == group]
        data = pack_group(group, entries, tensors)
        program, size = struct.unpack_from("<BI", data)
        codes = [tensors[entry.key] for entry in entries]
        orders = [plain_order(part) if is_sorted else list(range(len(part))) for part in codes]
        assert program == 0
        assert brotli.decompress(data[5 + size :]) == b"".join(
            part[order].T.tobytes() for part, order in zip(codes, orders, strict=True)
        )
        if is_sorted:
            assert brotli.decompress(data[5 : 5 + size]) == b"".join(np.array(o, "<u2").tobytes() for o in orders)
        else:
            assert size == 0


def test_the_container_takes_it_for_roles_alone_and_only_where_it_shrinks():
    random = np.random.default_rng(5)
    shapes = {"tok_emb": (60, 40), "mlp.fc": (60, 40), "attn.c_k": (2, 2), "bigram": (60, 40)}
    layout = [Entry(group, group, "int8", shape) for group, shape in shapes.items()]
    tensors = {group: similar(random, *shape) for group, shape in shapes.items()}
    sizes = stream_sizes(pack({}, layout, tensors, "pergroup"), lambda _: layout)
    assert {group: size.codec for group, size in sizes.items()} == {
        "tok_emb": "pergroup", "mlp.fc": "pergroup", "attn.c_k": "stored", "bigram": "brotli"
    }  # fmt: skip


def test_what_fits():
    assert fits("mlp.fc", [Entry("mlp.fc", "a", "int8", (MOST_ROWS, 1))])
    assert not fits("mlp.fc", [Entry("mlp.fc", "a", "int8", (MOST_ROWS + 1, 1))])  # numbers of rows have 16 bits
    assert fits("mlp.proj", [Entry("mlp.proj", "a", "int8", (MOST_ROWS + 1, 1))])
    assert not fits("mlp.fc", [Entry("mlp.fc", "a", "float16", (4, 4))])
    assert not fits("mlp.fc", [Entry("mlp.fc", "a", "int8", (4,))])
    assert not fits("gates", [Entry("gates", "a", "int8", (4, 4))])


def test_lrzip_packs_where_it_is_installed_and_is_asked_for_where_it_is_not(monkeypatch, tmp_path):
    codes = similar(np.random.default_rng(2))
    layout, tensors = [Entry("mlp.fc", "q", "int8", codes.shape)], {"q": codes}
    fake_programs.install(monkeypatch, tmp_path / "bin", lrzip=fake_programs.LRZIP)
    said = []
    blob = pack({}, layout, tensors, "pergroup", said.append)
    assert any("(lrzip)" in text for text in said)
    data = pack_group("mlp.fc", layout, tensors)
    assert data[0] == 1
    assert b"LRZI" in data
    assert (unpack(blob, lambda _: layout)[1]["q"] == codes).all()
    fake_programs.hide(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="apt install lrzip"):
        unpack(blob, lambda _: layout)
    pack({}, layout, tensors, "pergroup", said.append)
    assert any("brotli, for want of lrzip" in text for text in said)


def test_lrzip_that_fails_grows_or_lies_is_refused(monkeypatch, tmp_path):
    entries, tensors = [Entry("attn.c_k", "q", "int8", (60, 40))], {"q": similar(np.random.default_rng(2))}
    bombs = {
        "lrzip failed: no memory": 'import sys; sys.exit("no memory")',
        "lrzip failed": 'import sys; open(sys.argv[-2], "wb").write(bytes(1 << 20))',  # a bomb: more than was declared
        "lrzip gave 3 bytes, 2400 were declared": 'import sys; open(sys.argv[-2], "wb").write(b"abc")',
    }
    fake_programs.install(monkeypatch, tmp_path / "bin", lrzip=fake_programs.LRZIP)
    data = pack_group("attn.c_k", entries, tensors)
    for message, source in bombs.items():
        fake_programs.install(monkeypatch, tmp_path / "bin", lrzip=source)
        with pytest.raises(CorruptStreamError, match=message):
            unpack_group("attn.c_k", entries, data)
        assert not (tmp_path / "bin" / "out").exists()
    fake_programs.install(monkeypatch, tmp_path / "bin", lrzip=next(iter(bombs.values())))
    with pytest.raises(InputError, match="lrzip failed: no memory"):
        pack_group("attn.c_k", entries, tensors)


def test_damage_is_refused():
    layout, tensors = model(np.random.default_rng(3), 1)
    entries = [entry for entry in layout if entry.group == "mlp.fc"]
    data = pack_group("mlp.fc", entries, tensors)
    size = struct.unpack_from("<BI", data)[1]
    rows = sum(entry.shape[0] for entry in entries)
    twice = brotli.compress(bytes(2 * rows))
    cases = [
        b"", data[:4], data[:30], data[:-1], data + b"x", data[:1] + bytes(4) + data[5:], data[:5] + data[6:],
        struct.pack("<BI", 0, len(twice)) + twice + data[5 + size :],
    ]  # fmt: skip
    for case in cases:
        with pytest.raises(CorruptStreamError):
            unpack_group("mlp.fc", entries, case)
    with pytest.raises(CorruptStreamError, match="no pergroup stream"):
        unpack_group("gates", entries, data)
    for program in (2, 7, 255):  # what brotli packed is not taken for another program's
        with pytest.raises(CorruptStreamError, match=f"no program has the number {program}"):
            unpack_group("mlp.fc", entries, bytes([program]) + data[1:])
    entries = [entry for entry in layout if entry.group == "attn.c_k"]
    data = pack_group("attn.c_k", entries, tensors)
    with pytest.raises(CorruptStreamError, match="does not sort"):
        unpack_group("attn.c_k", entries, struct.pack("<BI", 0, 4) + b"junk" + data[5:])


def test_mutations_give_one_clear_error_or_bounded_garbage():
    random = np.random.default_rng(7)
    codes = similar(random)
    layout = [Entry("mlp.fc", "q", "int8", codes.shape)]
    data = pack_group("mlp.fc", layout, {"q": codes})
    survived = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(1, len(data))] ^= 1 << int(random.integers(0, 8))
        try:
            found = unpack_group("mlp.fc", layout, bytes(damaged))
        except CorruptStreamError:
            continue
        survived += 1
        assert found["q"].nbytes == raw_size(layout)
    assert survived < 400
