import hashlib
import json
import struct
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec import choose
from pgolf.codec.backends import Codec, compress, decompress
from pgolf.codec.container import MAX_HEADER_BYTES, MAX_STREAMS, StreamSize, pack, stream_sizes, unpack
from pgolf.codec.layout import DTYPES, Entry, group_bytes
from pgolf.errors import InputError

CODECS = typing.get_args(Codec)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def models(draw):
    """A header, a layout in which groups may interleave, and tensors of random, repetitive bytes."""
    layout, tensors = [], {}
    for index in range(draw(st.integers(0, 8))):
        dtype = draw(st.sampled_from(["int8", "float16", "float32", *sorted(DTYPES)]))
        shape = draw(st.lists(st.integers(0, 9), max_size=3).map(tuple))
        entry = Entry(draw(st.sampled_from("abc")), f"t{index}", dtype, shape)
        seed = draw(st.binary(min_size=1, max_size=40))
        data = (seed * (entry.nbytes // len(seed) + 1))[: entry.nbytes]
        layout.append(entry)
        tensors[entry.key] = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    return draw(st.dictionaries(st.text(max_size=9), json_values, max_size=5)), layout, tensors


def example():
    """A small model with tensors of the kinds that quantization makes."""
    random = np.random.default_rng(0)
    tensors = {
        "emb.q": np.round(random.normal(0, 2.4, (96, 32))).astype(np.int8),
        "up.q": np.round(random.normal(0, 2.4, (64, 32))).astype(np.int8),
        "emb.scale": random.lognormal(-3, 0.1, 96).astype(np.float16),
        "up.scale": random.lognormal(-3, 0.1, 64).astype(np.float16),
        "gain": np.float32(-0.0).reshape(()),
    }
    group = {"emb.q": "emb", "up.q": "up"}
    layout = [Entry(group.get(key, "rest"), key, str(value.dtype), value.shape) for key, value in tensors.items()]
    return {"model": {"dim": 32, "layers": 1}, "scheme": "int6"}, layout, tensors


def assert_same(got, want):
    assert set(got) == set(want)
    for key, tensor in want.items():
        assert (got[key].dtype, got[key].shape) == (tensor.dtype, tensor.shape)
        assert got[key].tobytes() == tensor.tobytes()


@settings(max_examples=80, deadline=None)
@given(model=models(), codec=st.sampled_from(CODECS))
def test_round_trip(model, codec):
    header, layout, tensors = model
    blob = pack(header, layout, tensors, codec)
    seen = []
    got_header, got = unpack(blob, lambda head: seen.append(head) or layout)
    assert json.dumps(got_header, sort_keys=True) == json.dumps(header, sort_keys=True)
    assert seen == [got_header]
    assert_same(got, tensors)


@pytest.mark.parametrize("codec", CODECS)
def test_equal_input_gives_equal_bytes(codec):
    header, layout, tensors = example()
    blob = pack(header, layout, tensors, codec)
    shuffled = dict(reversed(tensors.items()))
    fortran = {key: np.asfortranarray(tensor).reshape(tensor.shape) for key, tensor in shuffled.items()}
    assert pack(dict(reversed(header.items())), tuple(layout), fortran, codec) == blob


def second_decoder(blob):
    """Written from the module's docstring alone: header, and for each stream its codec and unpacked bytes."""
    assert blob[:4] == b"PGLF"
    assert blob[4:6] == bytes([1, 0])
    assert blob[6:22] == hashlib.sha256(blob[22:]).digest()[:16]
    number = lambda offset, length: int.from_bytes(blob[offset : offset + length], "little")  # noqa: E731
    names = {1: "brotli", 2: "zstd", 3: "lzma"}
    plain = lambda codec, data, size: bytes(data if codec == 0 else decompress(names[codec], data, size))  # noqa: E731
    stored = number(27, 4)
    header = plain(blob[22], blob[33 : 33 + stored], number(23, 4))
    count = number(31, 2)
    table = 33 + stored
    position = table + 9 * count
    streams = []
    for row in range(table, position, 9):
        raw, packed = number(row + 1, 4), number(row + 5, 4)
        streams.append((blob[row], plain(blob[row], blob[position : position + packed], raw)))
        position += packed
    assert position == len(blob)
    return header, streams


@pytest.mark.parametrize(("codec", "number"), [("brotli", 1), ("zstd", 2), ("lzma", 3)])
def test_a_decoder_written_from_the_docstring_reads_it(codec, number):
    header, layout, tensors = example()
    text, streams = second_decoder(pack(header, layout, tensors, codec))
    assert text == b'{"model":{"dim":32,"layers":1},"scheme":"int6"}'
    groups = [[entry for entry in layout if entry.group == group] for group in ("emb", "up", "rest")]
    assert [data for _, data in streams] == [group_bytes(entries, tensors) for entries in groups]
    assert [used for used, _ in streams[:2]] == [number, number]


def test_exact_bytes_of_a_stored_container():
    body = struct.pack("<BIIH", 0, 7, 7, 2) + b'{"a":1}' + struct.pack("<BII", 0, 6, 6) + struct.pack("<BII", 0, 4, 4)
    body += bytes([1, 4, 2, 5, 3, 6]) + bytes([0x00, 0x00, 0x3C, 0xC0])
    layout = [Entry("q", "w", "int8", (2, 3)), Entry("s", "scale", "float16", (2,))]
    tensors = {"w": np.array([[1, 2, 3], [4, 5, 6]], np.int8), "scale": np.array([1.0, -2.0], np.float16)}
    blob = b"PGLF\x01\x00" + hashlib.sha256(body).digest()[:16] + body
    assert pack({"a": 1}, layout, tensors) == blob
    assert_same(unpack(blob, lambda _: layout)[1], tensors)


@pytest.mark.parametrize("codec", CODECS)
def test_overhead_of_a_tiny_model(codec):
    layout = [Entry(f"group{index}", f"tensor{index}", "int8", (2, 2)) for index in range(7)]
    tensors = {entry.key: np.ones((2, 2), np.int8) for entry in layout}
    blob = pack({}, layout, tensors, codec)
    assert len(blob) - len("{}") - 7 * 4 <= 100
    assert len(pack({}, [], {}, codec)) == 33 + len("{}")


def test_header_is_compressed_when_that_is_smaller():
    long = {f"knob_{index}": "the same value" for index in range(200)}
    blob = pack(long, [], {})
    assert len(blob) < 1500
    assert unpack(blob, lambda _: []) == (long, {})


def test_stream_sizes():
    header, layout, tensors = example()
    tensors["gain"] = np.float32(1.5).reshape(())
    blob = pack(header, layout, tensors)
    sizes = stream_sizes(blob, lambda _: layout)
    assert list(sizes) == ["emb", "up", "rest"]
    assert [size.raw for size in sizes.values()] == [96 * 32, 64 * 32, 2 * 96 + 2 * 64 + 4]
    packed = len(compress("brotli", group_bytes([layout[0]], tensors)))
    assert sizes["emb"] == StreamSize(raw=96 * 32, packed=packed, codec="brotli")
    text = len(json.dumps(header, separators=(",", ":")))
    head = min(text, len(compress("brotli", json.dumps(header, separators=(",", ":"), sort_keys=True).encode())))
    assert sum(size.packed for size in sizes.values()) + 33 + head + 3 * 9 == len(blob)


def test_what_does_not_shrink_is_stored():
    noise = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint8)
    layout = [Entry("noise", "n", "uint8", (500,)), Entry("nothing", "z", "int8", (0, 4))]
    blob = pack({}, layout, {"n": noise, "z": np.zeros((0, 4), np.int8)})
    assert stream_sizes(blob, lambda _: layout) == {
        "noise": StreamSize(500, 500, "stored"),
        "nothing": StreamSize(0, 0, "stored"),
    }


def test_result_is_writable_and_independent():
    header, layout, tensors = example()
    blob = pack(header, layout, tensors)
    _, first = unpack(blob, lambda _: layout)
    for tensor in first.values():
        tensor[...] = 7
    assert_same(unpack(blob, lambda _: layout)[1], tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("gain"), "`gain` of the layout is missing"),
        (lambda tensors: tensors.update(more=np.zeros(1)), "`more` is not in the layout"),
        (lambda tensors: tensors.update(gain=np.zeros(())), "`gain` is float64"),
    ],
)
def test_pack_refuses_tensors_that_are_not_the_layouts(change, message):
    header, layout, tensors = example()
    change(tensors)
    with pytest.raises(InputError, match=message):
        pack(header, layout, tensors)


@pytest.mark.parametrize("header", [{"a": float("nan")}, {"a": {1, 2}}, {"a": np.float32(1)}, {"a": b""}])
def test_pack_refuses_a_header_that_is_not_json(header):
    with pytest.raises(InputError, match="header cannot be written as JSON"):
        pack(header, [], {})


def test_pack_limits():
    fits = {"a": "x" * (MAX_HEADER_BYTES - len('{"a":""}'))}
    assert unpack(pack(fits, [], {}, "zstd"), lambda _: [])[0] == fits
    with pytest.raises(InputError, match=f"header has {MAX_HEADER_BYTES + 1} bytes"):
        pack({"a": fits["a"] + "x"}, [], {}, "zstd")
    layout = [Entry(f"g{index}", f"t{index}", "int8", ()) for index in range(MAX_STREAMS + 1)]
    tensors = {entry.key: np.int8(1).reshape(()) for entry in layout}
    with pytest.raises(InputError, match="has 4097 groups; a container holds at most 4096"):
        pack({}, layout, tensors, "zstd")
    tensors.pop(layout[-1].key)
    assert len(unpack(pack({}, layout[:-1], tensors, "zstd"), lambda _: layout[:-1])[1]) == MAX_STREAMS


@pytest.mark.parametrize(("victim", "what"), [(b"{", "the header"), (b"", "tensor `emb.q`")])
def test_pack_refuses_a_compressor_that_loses_data(victim, what, monkeypatch):
    def lossy(codec, data):
        if data[:1] != b"{" and victim == b"":
            data = data[:-1] + bytes([data[-1] ^ 1])
        return compress(codec, data.replace(b"mmmm", b"mmmn") if victim else data)

    header, layout, tensors = example()
    monkeypatch.setattr(choose, "compress", lossy)
    with pytest.raises(InputError, match=f"{what} does not survive codec `brotli`"):
        pack({**header, "pad": "m" * 500}, layout, tensors)
