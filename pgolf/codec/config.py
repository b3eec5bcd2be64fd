"""The `compress` section of params.yaml."""

from dataclasses import dataclass

from pgolf.codec.choose import Choice


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig:
    """How the quantized model becomes the file that counts against the cap."""

    codec: Choice = "auto"
    """`auto`: for every stream the smallest of all; `gauss`: our entropy coder wherever it has a model (docs/codec.md);
    `pergroup`: the published ordering through `lrzip` if that is installed, else brotli (PR 1855);
    `brotli` (quality 11), `zstd` (level 22), `lzma` (preset 9 extreme): that compressor for every stream. On int6 codes
    brotli is about 6 % smaller than zstd (PR 1712, PR 1734), and our coder 2 % smaller than brotli."""
