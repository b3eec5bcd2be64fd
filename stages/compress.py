"""Codes to the shipped file: a container of compressed streams."""

import math
from pathlib import Path

from pgolf import artifacts, paths
from pgolf.budget import Clock
from pgolf.codec.config import CompressConfig
from pgolf.codec.container import stream_sizes
from pgolf.config import build
from pgolf.console import progress, stage_main, table
from pgolf.model.config import ModelConfig
from pgolf.params import section
from pgolf.quant.artifact import encode_model, layout_from_header, parameter_shapes, unpack_model
from pgolf.quant.config import QuantizeConfig


def compress(params: Path = paths.PARAMS) -> None:
    """Write model.pgolf, from which alone the model is evaluated."""
    config = section(params, "compress", CompressConfig)
    tensors, meta = artifacts.load(paths.QUANTIZED, schema="pgolf.quantized", made_by="quantize")
    model = build(ModelConfig, meta["params"]["model"], "model")
    scheme = build(QuantizeConfig, meta["params"]["quantize"], "quantize")
    clock = Clock()
    with progress("compress") as show:
        show(f"{len(tensors)} tensors with {config.codec}")
        with clock.phase("compress"):
            blob = encode_model(tensors, model, meta["vocab_size"], scheme, meta["tokenizer"], config.codec, show)
        with clock.phase("decompress"):
            unpack_model(blob)
    artifacts.write_bytes(paths.ARTIFACT, blob)
    sizes = stream_sizes(blob, layout_from_header)
    frame = len(blob) - sum(size.packed for size in sizes.values())
    rows = [(group, size.raw, size.packed, size.codec) for group, size in sizes.items()]
    table(
        "model.pgolf",
        ("stream", "raw bytes", "bytes", "codec"),
        [*rows, ("header", "", frame, ""), ("total", "", len(blob), "")],
    )
    weights = sum(map(math.prod, parameter_shapes(model, meta["vocab_size"]).values()))
    metrics = {
        "bytes_model": len(blob),
        "bits_per_weight": 8 * len(blob) / weights,
        "compress_seconds": clock.seconds("compress"),
        "decompress_seconds": clock.seconds("decompress"),
        "bytes_header": frame,
    }
    metrics |= {f"bytes_{group}": size.packed for group, size in sizes.items()}
    artifacts.write_json(paths.metrics("compress"), metrics)


if __name__ == "__main__":
    stage_main(compress)
