"""General compressors behind two functions, with decoders that cannot be made to outgrow the declared size.

brotli at quality 11 with a 2^24 window (PR 1855's remainder stream), zstd at level 22 (PR 401, PR 635), LZMA2 at
preset 9 extreme (PR 635, PR 1493). Headers are dropped where the format allows: zstd without magic, content size and
checksum, LZMA2 raw without the xz container, because the caller stores sizes and a checksum of its own.

Every decoder streams into a buffer that grows with what is really there, a step of at most `STEP` bytes at a time, and
stops at the first byte beyond the declared size. Besides the output it holds a history of at most `WINDOW` bytes and
one step. Weights have no long matches that a larger window would find.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pgolf.errors import InputError

Codec = Literal["brotli", "zstd", "lzma"]

WINDOW = 1 << 24
"""Bytes of history that a match may reach back; the largest that brotli has."""
STEP = 1 << 21
"""Bytes; upper bound of what one decoder step produces."""

_PACKAGES = {
    "brotli": ("brotli", "pip install 'brotli>=1.2'"),
    "zstd": ("zstandard", "pip install 'zstandard>=0.23'"),
    "lzma": ("lzma", "it comes with Python, but this one was built without liblzma (apt install liblzma-dev, rebuild)"),
}
_BROTLI_LIMIT = 1 << 18  # brotli overshoots a limit by one block of its growing output list, at most 2x here
_ZSTD_INPUT = 64  # bytes: at most 16 run-length blocks of 128 KiB, which is STEP
_ZSTD_LEAST_WINDOW = 1 << 10  # bytes, of the format
_LZMA_LEAST_DICTIONARY = 1 << 12  # bytes, of the format


class CorruptStreamError(InputError):
    """The data is no whole stream of the declared size."""


def compress(codec: Codec, data: bytes) -> bytes:
    """Pack `data`. Equal input gives equal bytes for one version of the compressor.

    Raises InputError for an unknown codec and for a package that is not installed, with the install line.
    """
    match codec:
        case "brotli":
            return _compress_brotli(data)
        case "zstd":
            return _compress_zstd(data)
        case "lzma":
            return _compress_lzma(data)
    raise InputError(f"codec `{codec}` is unknown; it must be one of brotli, zstd, lzma")


def decompress(codec: Codec, data: bytes | memoryview, size: int) -> bytearray:
    """Unpack `data`, which must be one whole stream of exactly `size` bytes when unpacked.

    Raises CorruptStreamError (an InputError) for corrupt data, output longer or shorter than `size` and trailing bytes,
    InputError for an unknown codec and a package that is not installed. Input and output lengths bound the time.
    """
    match codec:
        case "brotli":
            steps = _decompress_brotli(data)
        case "zstd":
            steps = _decompress_zstd(data, size)
        case "lzma":
            steps = _decompress_lzma(data, size)
        case _:
            raise InputError(f"codec `{codec}` is unknown; it must be one of brotli, zstd, lzma")
    out = bytearray()
    try:
        for step in steps:
            out += step
            if len(out) > size:
                raise CorruptStreamError(f"it unpacks to more than the declared {size} bytes")
        if len(out) < size:
            raise CorruptStreamError(f"it unpacks to {len(out)} bytes where {size} are declared")
    except CorruptStreamError as error:
        raise CorruptStreamError(f"the {codec} data is corrupt: {error}") from None
    return out


def _load(codec: Codec) -> Any:
    """Import the codec's package: only when it is used, and never another one in its place."""
    try:  # written out, so that the imports of a submission can be read off its source
        match codec:
            case "brotli":
                import brotli as module
            case "zstd":
                import zstandard as module
            case "lzma":
                import lzma as module
    except ImportError:
        package, install = _PACKAGES[codec]
        raise InputError(f"codec `{codec}` needs the package {package}, which is not installed: {install}") from None
    return module


def _compress_brotli(data: bytes) -> bytes:
    return bytes(_load("brotli").compress(data, quality=11, lgwin=WINDOW.bit_length() - 1))


def _decompress_brotli(data: bytes | memoryview) -> Iterator[bytes]:
    brotli = _load("brotli")
    decoder = brotli.Decompressor()
    if not hasattr(decoder, "can_accept_more_data"):  # 1.1 has no output limit: a bomb would unpack in one call
        raise InputError(f"codec `brotli` needs brotli 1.2 or newer to unpack safely: {_PACKAGES['brotli'][1]}")
    pending: bytes | memoryview = data
    try:
        while not decoder.is_finished():
            step = decoder.process(pending, output_buffer_limit=_BROTLI_LIMIT)
            if not step and not decoder.is_finished():
                raise CorruptStreamError("it ends too early")
            yield step
            pending = b""
    except brotli.error:  # also raised for input left over after the end of the stream
        raise CorruptStreamError("it does not decode, or bytes follow its end") from None


def _compress_zstd(data: bytes) -> bytes:
    zstd = _load("zstd")
    settings = zstd.ZstdCompressionParameters.from_level(
        22,
        source_size=len(data),
        window_log=_zstd_window(len(data)).bit_length() - 1,
        format=zstd.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    return bytes(zstd.ZstdCompressor(compression_params=settings).compress(data))


def _zstd_window(size: int) -> int:
    """The next power of two above `size`, within the limits."""
    return max(_ZSTD_LEAST_WINDOW, min(WINDOW, 1 << size.bit_length()))


def _decompress_zstd(data: bytes | memoryview, size: int) -> Iterator[bytes]:
    zstd = _load("zstd")
    unpacker = zstd.ZstdDecompressor(format=zstd.FORMAT_ZSTD1_MAGICLESS, max_window_size=_zstd_window(size))
    decoder = unpacker.decompressobj()
    view = memoryview(data)
    try:
        for start in range(0, len(view), _ZSTD_INPUT):
            if decoder.eof:
                raise CorruptStreamError(f"{len(view) - start} bytes follow its end")
            yield decoder.decompress(view[start : start + _ZSTD_INPUT])
    except zstd.ZstdError as error:
        raise CorruptStreamError(str(error)) from None
    if not decoder.eof:
        raise CorruptStreamError("it ends too early")
    if decoder.unused_data:
        raise CorruptStreamError(f"{len(decoder.unused_data)} bytes follow its end")


def _lzma_filters(lzma: Any, size: int) -> list[dict[str, int]]:
    """LZMA2 with a dictionary no larger than the data; both sides know `size`, so it needs no place in the stream."""
    dictionary = max(_LZMA_LEAST_DICTIONARY, min(WINDOW, size))
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def _compress_lzma(data: bytes) -> bytes:
    lzma = _load("lzma")
    return bytes(lzma.compress(data, format=lzma.FORMAT_RAW, filters=_lzma_filters(lzma, len(data))))


def _decompress_lzma(data: bytes | memoryview, size: int) -> Iterator[bytes]:
    lzma = _load("lzma")
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_lzma_filters(lzma, size))
    pending: bytes | memoryview = data
    try:
        while not decoder.eof:
            step = decoder.decompress(pending, max_length=STEP)
            if not step and not decoder.eof:
                raise CorruptStreamError("it ends too early")
            yield step
            pending = b""
    except lzma.LZMAError as error:
        raise CorruptStreamError(str(error)) from None
    if decoder.unused_data:
        raise CorruptStreamError(f"{len(decoder.unused_data)} bytes follow its end")
