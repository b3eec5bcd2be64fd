"""The measurements of `pgolf bench codec` add up."""

import time

import fake_programs
import numpy as np
import pytest
from safetensors.numpy import save_file

from pgolf.bench.codec import ORDER0, Measured, bench_codec, order0_bytes, read_quantized, relative, totals
from pgolf.errors import InputError
from pgolf.report.sizes import bytes_by_codec


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch, tmp_path):
    fake_programs.hide(monkeypatch, tmp_path)


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
    start = time.process_time()
    results = bench_codec(tmp_path / "q.safetensors", 2, lambda _: None)
    spent = time.process_time() - start
    streams = {"tok_emb", "mlp.fc", "gates", "scales", "small"}
    codecs = ("gauss", "brotli", "zstd", "lzma", "pergroup", ORDER0)
    assert sorted((r.group, r.codec) for r in results) == sorted(
        (group, codec) for group in streams for codec in codecs
    )
    ours = [r for r in results if r.codec == "gauss"]
    assert all(r.encode_seconds > 0 and r.decode_seconds > 0 for r in ours)
    assert sum(r.encode_seconds + r.decode_seconds for r in ours) < spent
    size = {(r.group, r.codec): r.packed for r in results}
    assert size["scales", "pergroup"] == size["scales", "brotli"]  # the published remainder
    assert size["mlp.fc", "pergroup"] != size["mlp.fc", "brotli"]
    for total in totals(results):
        assert total.raw == sum(tensor.nbytes for tensor in tensors.values())
        assert total.symbols == sum(tensor.size for tensor in tensors.values())
    packed = [total.packed for total in totals(results)]
    assert packed == sorted(packed)


def test_the_picture_shows_every_number_once():
    sizes = {"fc": {ORDER0: 50, "gauss": 40, "zstd": 60}, "scales": {ORDER0: 8, "gauss": 6, "zstd": 5}}
    results = [Measured(group, c, 9, 9, size, 0.0, 0.0) for group, row in sizes.items() for c, size in row.items()]
    percent = relative([*results, *totals(results)])
    assert percent["fc"] == {"gauss": 80.0, "zstd": 120.0}
    assert percent["scales"] == {"gauss": 75.0, "zstd": 62.5}
    assert percent["all"] == {"gauss": pytest.approx(100 * 46 / 58), "zstd": pytest.approx(100 * 65 / 58)}
    axes = bytes_by_codec(percent).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["gauss", "zstd"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fc", "scales", "all"]
    shown = {text.get_position()[::-1]: (text.get_text(), text.get_weight()) for text in axes.texts}
    assert shown == {
        (0, 0): ("80.0", "bold"), (0, 1): ("120.0", "normal"), (1, 0): ("75.0", "normal"), (1, 1): ("62.5", "bold"),
        (2, 0): ("79.3", "bold"), (2, 1): ("112.1", "normal"),
    }  # fmt: skip


def test_programs_that_are_installed_are_measured(monkeypatch, tmp_path):
    tensors = write(tmp_path / "q.safetensors")
    both = {"lrzip": fake_programs.LRZIP, "zpaq": fake_programs.ZPAQ}
    fake_programs.install(monkeypatch, tmp_path / "bin", **both)
    said = []
    results = bench_codec(tmp_path / "q.safetensors", 2, said.append)
    assert {"mlp.fc: lrzip", "small: zpaq"} <= set(said)
    for name in both:
        (total,) = (total for total in totals(results) if total.codec == name)
        assert total.raw == sum(tensor.nbytes for tensor in tensors.values())
        assert 0 < total.packed < total.raw
        assert total.encode_seconds > 0 < total.decode_seconds
    size = {(r.group, r.codec): r.packed for r in results}
    for group in ("tok_emb", "mlp.fc"):  # both stand-ins pack with zlib, lrzip's with a magic number before it
        assert size[group, "lrzip"] == size[group, "zpaq"] + 4
    fake_programs.install(
        monkeypatch,
        tmp_path / "bin",
        zpaq=fake_programs.ZPAQ.replace('/ "in").write_bytes(', '/ "in").write_bytes(b"!" + '),
    )
    with pytest.raises(InputError, match="zpaq does not give back"):
        bench_codec(tmp_path / "q.safetensors", 2, lambda _: None)
    fake_programs.install(monkeypatch, tmp_path / "bin", zpaq="raise SystemExit('out of memory')")
    with pytest.raises(InputError, match=r"zpaq failed \(out of memory\)"):
        bench_codec(tmp_path / "q.safetensors", 2, lambda _: None)


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
