"""Damaged and hostile containers: one clear InputError, or bounded tensors."""

import gc
import hashlib
import json
import struct
import time
import tracemalloc
import typing

import numpy as np
import pytest

from pgolf.codec.backends import STEP, WINDOW, Codec, compress
from pgolf.codec.container import MAX_HEADER_BYTES, MAX_STREAMS, pack, stream_sizes, unpack
from pgolf.codec.layout import MAX_RAW_BYTES, Entry
from pgolf.errors import InputError

CODECS = typing.get_args(Codec)
REMEDY = "the file is damaged or truncated: run `pgolf compress` again"
HEADER = {"dim": 32, "layers": 2, "scale": "float16", "note": "n" * 60}


def layout_of(header):
    """A caller's layout that trusts its header, as badly as a caller can."""
    dim = header["dim"]
    for layer in range(header["layers"]):
        yield Entry("up", f"{layer}.up", "int8", (2 * dim, dim))
        yield Entry("down", f"{layer}.down", "int8", (dim, 2 * dim))
        yield Entry("rest", f"{layer}.scale", header["scale"], (3 * dim,))


def model(codec="brotli", header=None):
    header = HEADER if header is None else header
    random = np.random.default_rng(0)
    tensors = {}
    for entry in layout_of(header):
        values = random.normal(0, 2.4, entry.shape)
        tensors[entry.key] = (np.round(values) if entry.dtype == "int8" else 1 + values / 99).astype(entry.dtype)
    return pack(header, list(layout_of(header)), tensors, codec)


def reseal(blob):
    """Give a changed container a checksum that fits, as an attacker would."""
    return blob[:6] + hashlib.sha256(blob[22:]).digest()[:16] + blob[22:]


def build(header, streams, *, magic=b"PGLF", version=1, count=None, head=None):
    """A sealed container from parts; `streams` are (codec number, declared size, data), `head` likewise."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    number, raw, data = head or (0, len(text), text)
    body = struct.pack("<BIIH", number, raw, len(data), len(streams) if count is None else count) + data
    body += b"".join(struct.pack("<BII", codec, size, len(packed)) for codec, size, packed in streams)
    body += b"".join(packed for _, _, packed in streams)
    return reseal(magic + struct.pack("<H", version) + bytes(16) + body)


def refused(blob, layout=lambda header: []):
    with pytest.raises(InputError) as caught:
        unpack(blob, layout)
    assert "run `pgolf compress` again" in str(caught.value)
    return str(caught.value)


def least_peak(function):
    """What it returns, and the least peak of three runs: what other tests' threads allocate meanwhile is traced too."""
    peaks = []
    for _ in range(3):
        gc.collect()
        tracemalloc.start()
        try:
            result = function()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return result, min(peaks)


def patched(blob, offset, data):
    return blob[:offset] + data + blob[offset + len(data) :]


def test_the_helpers_build_what_is_accepted():
    blob = model()
    assert reseal(blob) == blob
    assert unpack(build({"a": 1}, [(0, 3, b"abc")]), lambda _: [Entry("g", "t", "uint8", (3,))])[0] == {"a": 1}


@pytest.mark.parametrize("blob", [b"PK\x03\x04 something else", b"PGLX" + bytes(60), b"x", b"\x80\x04\x95"])
def test_wrong_magic(blob):
    assert "not a pgolf container" in refused(blob)


@pytest.mark.parametrize(("version", "word"), [(2, "newer"), (65535, "newer"), (0, "unknown")])
def test_other_version(version, word):
    message = refused(build({}, [], version=version))
    assert f"the container has {word} version {version}, this pgolf reads version 1: update pgolf" in message


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("sealed", [False, True])
def test_truncation_anywhere(codec, sealed):
    blob = model(codec)
    for length in [*range(160), *range(160, len(blob), 37), len(blob) - 1]:
        cut = blob[:length]
        message = refused(reseal(cut) if sealed and length >= 22 else cut, layout_of)
        assert "the container is truncated" in message
        assert REMEDY in message


def test_trailing_bytes():
    assert f"3 bytes follow the end of the container: {REMEDY}" in refused(reseal(model() + b"abc"), layout_of)
    assert "follow the end" in refused(model() + model(), layout_of)


def test_bad_checksum():
    blob = model()
    for offset in [6, 21, *range(len(blob) - 1, len(blob) - 900, -101)]:
        damaged = patched(blob, offset, bytes([blob[offset] ^ 0x10]))
        assert f"the checksum does not match: {REMEDY}" in refused(damaged, layout_of)
        with pytest.raises(InputError, match="checksum"):
            stream_sizes(damaged, layout_of)


@pytest.mark.parametrize("codec", CODECS)
def test_resealed_damage_inside_a_stream_names_the_stream(codec):
    packed = compress(codec, bytes(range(50)) * 20)
    number = 1 + CODECS.index(codec)
    entries = [Entry("g", "t", "uint8", (1000,))]
    assert unpack(build({}, [(number, 1000, packed)]), lambda _: entries)[1]["t"].tolist() == list(range(50)) * 20
    message = refused(build({}, [(number, 1000, packed[:-1])]), lambda _: entries)
    assert f"stream 0: the {codec} data is corrupt: " in message
    assert "bytes follow" in refused(build({}, [(number, 1000, packed + b"\0")]), lambda _: entries)
    short = [Entry("g", "t", "uint8", (999,))]
    assert "more than the declared 999 bytes" in refused(build({}, [(number, 999, packed)]), lambda _: short)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ([(0, 3, b"abcd")], r"the lengths of stream 0 do not add up \(3 bytes stored as 4 by stored\)"),
        ([(0, 4, b"abcd"), (0, 5, b"abcd")], "the lengths of stream 1 do not add up"),
        ([(1, 3, b"abcd")], "the lengths of stream 0 do not add up"),
        ([(6, 9, b"abcd")], "stream 0 has codec 6, which does not exist there in version 1"),
        ([(5, 9, b"abcd")], "the layout has 0 streams, the container 1"),
        ([(5, 9, bytes(10))], "the lengths of stream 0 do not add up"),
        ([(4, 64 * 12289 + 1, b"a")], "the lengths of stream 0 do not add up"),
        ([(4, 9, bytes(9 + 12289))], "the lengths of stream 0 do not add up"),
        ([(255, 9, b"abcd")], "stream 0 has codec 255"),
        ([(1, 1 << 30, b"a"), (1, 1, b"a")], "the streams declare 1073741825 bytes, more than 1073741824"),
        ([(1, 0xFFFFFFFF, b"a")] * 3, "the streams declare"),
    ],
)
def test_lengths_that_cannot_be(streams, message):
    with pytest.raises(InputError, match=message):
        unpack(build({}, streams), lambda _: [])
    refused(build({}, streams))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((1, MAX_HEADER_BYTES + 1, b"x"), f"header declares {MAX_HEADER_BYTES + 1} bytes"),
        ((0, 5, b"{}"), "the lengths of the header do not add up"),
        ((1, 1, b"{}"), "the lengths of the header do not add up"),
        ((9, 2, b"{}"), "the header has codec 9"),
        ((4, 2, b"{}"), "the header has codec 4, which does not exist there in version 1"),
        ((5, 2, b"{}"), "the header has codec 5"),
        ((1, 50, b"{}"), "the header: the brotli data is corrupt"),
        ((2, 50, b"{}"), "the header: the zstd data is corrupt"),
        ((3, 50, b"{}"), "the header: the lzma data is corrupt"),
    ],
)
def test_impossible_headers(head, message):
    assert message in refused(build({}, [], head=head))


def test_too_many_streams():
    assert f"declares {MAX_STREAMS + 1} streams" in refused(build({}, [], count=MAX_STREAMS + 1))
    assert "truncated: header and table need" in refused(build({}, [], count=MAX_STREAMS))


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"{'a':1}", b"\xff\xfe", '{"a":"\u00e9"}'.encode(), b'{"a":NaN}', b'{"a":-Infinity}', b"{} x",
        b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_header_that_is_not_json(text):
    assert "the header is not JSON" in refused(build(text, []))


@pytest.mark.parametrize(("text", "kind"), [(b"[]", "list"), (b"null", "NoneType"), (b'"{}"', "str"), (b"7", "int")])
def test_header_that_is_no_object(text, kind):
    assert f"the header is not a JSON object but a {kind}: {REMEDY}" in refused(build(text, []))


def test_layout_mismatch():
    blob = model()
    names = ("up", "down", "rest")
    sizes = {name: size.raw for name, size in stream_sizes(blob, layout_of).items()}
    assert sizes == {"up": 4096, "down": 4096, "rest": 384}
    less = lambda header: [entry for entry in layout_of(header) if entry.group != "rest"]  # noqa: E731
    assert "the layout has 2 streams, the container 3" in refused(blob, less)
    for name in names:
        wider = lambda header: [*layout_of(header), Entry(name, "more", "int8", (5,))]  # noqa: B023, E731
        expected = f"the layout gives stream `{name}` {sizes[name] + 5} bytes, the container {sizes[name]}"
        assert expected in refused(blob, wider)
        with pytest.raises(InputError, match="the layout gives stream"):
            stream_sizes(blob, wider)


@pytest.mark.parametrize(
    "header",
    [
        {}, {"dim": 32}, {**HEADER, "dim": "32"}, {**HEADER, "dim": -1}, {**HEADER, "dim": 1e9},
        {**HEADER, "dim": None},
        {**HEADER, "dim": 10**300}, {**HEADER, "layers": [1]}, {**HEADER, "scale": "object"}, {**HEADER, "scale": {}},
        {**HEADER, "layers": 10**18}, {**HEADER, "layers": 10**18, "dim": 0},
    ],
)  # fmt: skip
def test_header_that_makes_no_layout(header):
    assert "the header describes no layout" in refused(build(header, []), layout_of)


def test_errors_of_a_layout_keep_their_cause():
    with pytest.raises(InputError, match="KeyError: 'dim'") as caught:
        unpack(build({}, []), layout_of)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("codec", CODECS)
def test_huge_declared_sizes_do_not_allocate(codec):
    packed = compress(codec, bytes(1000))
    number = 1 + CODECS.index(codec)
    blob = build({}, [(number, MAX_RAW_BYTES, packed)])
    header_blob = build({}, [], head=(number, MAX_HEADER_BYTES, packed))
    message, peak = least_peak(lambda: refused(blob, lambda _: [Entry("g", "t", "float32", (MAX_RAW_BYTES // 4,))]))
    header_message, header_peak = least_peak(lambda: refused(header_blob))
    assert f"the {codec} data is corrupt: it unpacks to 1000 bytes where {MAX_RAW_BYTES} are declared" in message
    assert f"the {codec} data is corrupt: it unpacks to 1000 bytes where {MAX_HEADER_BYTES}" in header_message
    assert max(peak, header_peak) < WINDOW + 2 * STEP


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_stops_at_the_declared_size(codec):
    bomb = compress(codec, bytes(8 * STEP))
    number = 1 + CODECS.index(codec)
    declared = 100_000
    blob = build({}, [(number, declared, bomb)])
    message, peak = least_peak(lambda: refused(blob, lambda _: [Entry("g", "t", "uint8", (declared,))]))
    assert f"the {codec} data is corrupt" in message
    assert peak < 4 * STEP


def mutate(random, blob):
    """One to three random changes: flipped bits, cuts, insertions, copied and extreme bytes, mostly in the front."""
    for _ in range(random.integers(1, 4)):
        front = random.random() < 0.5
        size = max(1, min(len(blob), 180) if front else len(blob))
        offset = int(random.integers(0, size))
        span = int(random.integers(1, 12))
        match int(random.integers(0, 6)):
            case 0 | 1:
                byte = blob[offset : offset + 1] or b"\0"
                blob = patched(blob, offset, bytes([byte[0] ^ 1 << int(random.integers(0, 8))]))
            case 2:
                blob = blob[:offset] if random.random() < 0.3 else blob[:offset] + blob[offset + span :]
            case 3:
                blob = blob[:offset] + random.bytes(span) + blob[offset:]
            case 4:
                source = int(random.integers(0, max(1, len(blob))))
                blob = patched(blob, offset, blob[source : source + span])
            case _:
                extreme = int(random.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 30, 1 << 20]))
                start = int(random.choice([23, 27, 31, offset]))
                blob = patched(blob, start, struct.pack("<I", extreme))
    return blob


@pytest.mark.parametrize("codec", CODECS)
def test_fuzz(codec):
    blob = model(codec)
    small = model(codec, {"dim": 4, "layers": 1, "scale": "float32"})
    random = np.random.default_rng(1855)
    decoded = 0
    tracemalloc.start()
    try:
        for _ in range(300):
            original = blob if random.random() < 0.7 else small
            damaged = mutate(random, original)
            for sealed in (False, True):
                case = reseal(damaged) if sealed else damaged
                begin = time.perf_counter()
                try:
                    header, tensors = unpack(case, layout_of)
                except InputError as error:
                    assert "run `pgolf compress` again" in str(error)  # noqa: PT017
                else:
                    assert sealed or case == original
                    entries = {entry.key: entry for entry in layout_of(header)}
                    assert {key: tensor.shape for key, tensor in tensors.items()} == {
                        key: entry.shape for key, entry in entries.items()
                    }
                    decoded += case != original
                assert time.perf_counter() - begin < 1.0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoded > 0  # some damage gets past the parser, so the streams' decoders are tested too
    assert peak < 4 * STEP
