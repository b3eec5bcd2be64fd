import subprocess
import sys
import types
import typing
import zlib
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec.backends import STEP, Codec, CorruptStreamError, compress, decompress
from pgolf.codec.config import CompressConfig
from pgolf.config import build
from pgolf.errors import InputError

CODECS = typing.get_args(Codec)
each_codec = pytest.mark.parametrize("codec", CODECS)


def gaussian_codes(count: int) -> bytes:
    values = np.random.default_rng(0).normal(0.0, 2.4, count)
    return np.clip(np.round(values), -32, 31).astype(np.int8).tobytes()


@settings(max_examples=60, deadline=None)
@given(codec=st.sampled_from(CODECS), data=st.binary(max_size=5000), repeat=st.integers(1, 50))
def test_round_trip(codec, data, repeat):
    data = data * repeat
    assert decompress(codec, compress(codec, data), len(data)) == data


@each_codec
def test_round_trip_over_several_steps(codec):
    data = gaussian_codes(300_000) + bytes(3 * STEP) + b"end"
    packed = compress(codec, data)
    assert decompress(codec, packed, len(data)) == data
    assert decompress(codec, memoryview(b"x" + packed)[1:], len(data)) == data
    assert compress(codec, data) == packed


@each_codec
@pytest.mark.parametrize("count", [0, 1, 70, 200_000])
def test_declared_size_must_be_exact(codec, count):
    data = gaussian_codes(count)
    packed = compress(codec, data)
    for size in {0, count - 1, count + 1, 2 * count + 5000} - {-1, count}:
        with pytest.raises(CorruptStreamError, match=f"the {codec} data is corrupt: "):
            decompress(codec, packed, size)


@each_codec
@pytest.mark.parametrize("count", [0, 1, 70, 200_000])
@pytest.mark.parametrize("tail", [b"\0", b"\x03", b"\xff" * 70, "itself"])
def test_trailing_bytes_are_refused(codec, count, tail):
    data = gaussian_codes(count)
    packed = compress(codec, data)
    tail = packed if tail == "itself" else tail
    with pytest.raises(CorruptStreamError):
        decompress(codec, packed + tail, count)


@each_codec
def test_trailing_bytes_are_refused_at_every_length(codec):
    data = gaussian_codes(400)
    lengths = set()
    for count in range(0, 400, 2):  # the decoders read in pieces: the stream must also end where a piece ends
        packed = compress(codec, data[:count])
        lengths.add(len(packed) % 64)
        with pytest.raises(CorruptStreamError, match="follow"):
            decompress(codec, packed + b"\0", count)
    assert 0 in lengths


def test_a_zstd_window_beyond_the_declared_size_is_refused():
    data = gaussian_codes(5000)
    for window_log, fits in [(10, True), (13, True), (14, False), (27, False)]:
        settings = zstandard.ZstdCompressionParameters.from_level(
            1, window_log=window_log, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False
        )
        stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
        packed = stream.compress(data) + stream.flush()
        if fits:
            assert decompress("zstd", packed, len(data)) == data
        else:
            with pytest.raises(CorruptStreamError, match="too much memory"):
                decompress("zstd", packed, len(data))


@each_codec
def test_truncated_data_is_refused(codec):
    data = gaussian_codes(400)
    packed = compress(codec, data)
    for length in range(len(packed)):
        with pytest.raises(CorruptStreamError):
            decompress(codec, packed[:length], len(data))


@each_codec
def test_flipped_bits_are_refused_or_decode_to_the_declared_size(codec):
    data = gaussian_codes(400)
    packed = compress(codec, data)
    refused = 0
    for bit in range(0, 8 * len(packed), 5):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert len(decompress(codec, bytes(damaged), len(data))) == len(data)
        except CorruptStreamError:
            refused += 1
    assert refused > 10


@each_codec
def test_random_bytes_are_refused(codec):
    random = np.random.default_rng(1)
    for length in range(1, 200):
        with pytest.raises(CorruptStreamError):
            decompress(codec, random.bytes(length), 100_000)


BOMBS = """
import lzma, resource, sys
import brotli, zstandard
from pgolf.codec.backends import compress, decompress
from pgolf.errors import InputError

zeros = bytes(1 << 28)
window = zstandard.ZstdCompressionParameters.from_level(
    1, window_log=int(sys.argv[1]), format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False)
small = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
bombs = {
    "brotli": brotli.compress(zeros, quality=2, lgwin=24),
    "zstd": zstandard.ZstdCompressor(compression_params=window).compress(zeros),
    "lzma": lzma.compress(zeros, format=lzma.FORMAT_RAW, filters=small),
}
del zeros
for codec, bomb in bombs.items():
    decompress(codec, compress(codec, b"warm"), 4)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (48 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    bytearray(1 << 26)
except MemoryError:
    print("limited")
for codec, bomb in bombs.items():
    for size in (0, 1000, 1_000_000):
        try:
            decompress(codec, bomb, size)
        except InputError:
            print("refused", codec, size)
    try:
        decompress(codec, compress(codec, b"warm"), 1 << 30)
    except InputError:
        print("refused", codec, "huge")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space through /proc and RLIMIT_AS")
@pytest.mark.parametrize("window_log", [10, 27])  # beyond the declared size at once, or after a first window
def test_a_bomb_of_256_mib_stops_at_the_declared_size(window_log):
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "-c", BOMBS, str(window_log)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    expected = [f"refused {codec} {size}" for codec in CODECS for size in (0, 1000, 1_000_000, "huge")]
    assert run.stdout.splitlines() == ["limited", *expected]


@each_codec
def test_missing_package_names_the_install_line(codec, monkeypatch):
    packed = compress(codec, b"abc")
    package = {"brotli": "brotli", "zstd": "zstandard", "lzma": "lzma"}[codec]
    monkeypatch.setitem(sys.modules, package, None)
    line = {"brotli": "pip install 'brotli>=1.2'", "zstd": "pip install 'zstandard>=0.23'", "lzma": "liblzma"}[codec]
    for call in (lambda: compress(codec, b"abc"), lambda: decompress(codec, packed, 3)):
        with pytest.raises(InputError, match=f"codec `{codec}` needs the package {package}") as caught:
            call()
        assert line in str(caught.value)
        assert not isinstance(caught.value, CorruptStreamError)


def test_brotli_without_output_limits_is_refused(monkeypatch):
    old = types.SimpleNamespace(Decompressor=lambda: types.SimpleNamespace(process=lambda data: data))
    packed = compress("brotli", b"abc")
    monkeypatch.setitem(sys.modules, "brotli", old)
    with pytest.raises(InputError, match=r"brotli 1\.2 or newer .*: pip install 'brotli>=1\.2'"):
        decompress("brotli", packed, 3)


def test_unknown_codec():
    with pytest.raises(InputError, match="`gzip` is unknown; it must be one of brotli, zstd, lzma"):
        compress("gzip", b"")
    with pytest.raises(InputError, match="`gzip` is unknown; it must be one of brotli, zstd, lzma"):
        decompress("gzip", b"", 0)


def test_sizes_on_gaussian_codes():
    data = gaussian_codes(100_000)
    sizes = {codec: len(compress(codec, data)) for codec in CODECS}
    assert sizes["brotli"] <= len(zlib.compress(data, 9))
    assert max(sizes.values()) < 0.55 * len(data)  # the entropy is 3.3 of 8 bits, xz reaches 3.8
    assert sizes["brotli"] > 3.3 / 8 * len(data)


def test_headers_are_dropped():
    assert len(compress("brotli", b"")) <= 1
    assert len(compress("lzma", b"")) == 1
    assert len(compress("zstd", b"")) == 5  # descriptor, window, one empty block


def test_config():
    assert build(CompressConfig, {}, "compress") == CompressConfig(codec="auto")
    assert build(CompressConfig, {"codec": "zstd"}, "compress").codec == "zstd"
    with pytest.raises(
        InputError, match="'gzip'; it must be one of 'auto', 'gauss', 'pergroup', 'brotli', 'zstd', 'lzma'"
    ):
        build(CompressConfig, {"codec": "gzip"}, "compress")
