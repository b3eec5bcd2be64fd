"""The measurements of `pgolf bench codec` add up."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from pgolf.bench.codec import ORDER0, bench_codec, order0_bytes, read_quantized, totals
from pgolf.errors import InputError


def write(path):
    random = np.random.default_rng(0)
    tensors = {"tok_emb.weight.q": random.integers(-9, 9, (40, 16), np.int8), "gain": np.ones(16, np.float16)}
    for layer in (0, 10, 2):
        tensors[f"blocks.{layer}.mlp.fc.weight.q"] = random.integers(-9, 9, (32, 16), np.int8)
        tensors[f"blocks.{layer}.mlp.fc.weight.scale"] = random.lognormal(0, 0.1, 32).astype(np.float16)
        tensors[f"blocks.{layer}.attn.attn_gate_w.gq"] = random.integers(-99, 99, (4, 8), np.int8)
    save_file(tensors, path)
    return tensors


def test_every_codec_on_every_stream(tmp_path):
    tensors = write(tmp_path / "q.safetensors")
    results = bench_codec(tmp_path / "q.safetensors", 2, lambda _: None)
    streams = {result.group for result in results}
    assert streams == {"tok_emb", "mlp.fc", "gates", "scales", "small"}
    assert {(r.group, r.codec) for r in results} >= {
        (group, codec) for group in streams for codec in ("gauss", "brotli", "zstd", "lzma", ORDER0)
    }
    for total in totals(results):
        assert total.raw == sum(tensor.nbytes for tensor in tensors.values())
        assert total.symbols == sum(tensor.size for tensor in tensors.values())
    packed = [total.packed for total in totals(results)]
    assert packed == sorted(packed)


def test_layers_are_in_order_of_number(tmp_path):
    write(tmp_path / "q.safetensors")
    layout, _ = read_quantized(tmp_path / "q.safetensors")
    assert [e.key.split(".")[1] for e in layout if e.group == "mlp.fc"] == ["0", "2", "10"]


def test_order0():
    assert order0_bytes(b"") == 0
    assert order0_bytes(bytes(100)) == 0
    assert order0_bytes(bytes(range(256)) * 3) == 768
    assert order0_bytes(b"\0\1" * 40) == 10


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no safetensors file"):
        read_quantized(tmp_path / "x")
    save_file({"w": np.zeros(3, np.float32)}, tmp_path / "w")
    with pytest.raises(InputError, match="holds no codes"):
        read_quantized(tmp_path / "w")
