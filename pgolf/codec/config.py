"""The `compress` section of params.yaml."""

from dataclasses import dataclass

from pgolf.codec.backends import Codec


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig:
    """How the quantized model becomes the file that counts against the cap."""

    codec: Codec = "brotli"
    """General compressor of every stream: `brotli` (quality 11), `zstd` (level 22) or `lzma` (preset 9 extreme). On
    int6 codes brotli is about 6 % smaller than zstd (PR 1712, PR 1734)."""
