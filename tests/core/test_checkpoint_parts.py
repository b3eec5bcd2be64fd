"""A checkpoint in parts: rounded where it says so, bit-exact elsewhere, and nothing damaged gets through."""

import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pgolf import artifacts, checkpoint_parts
from pgolf.checkpoint_file import load_checkpoint
from pgolf.checkpoint_parts import INDEX, join_checkpoint, split_checkpoint
from pgolf.cli import app
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs

MODEL = ModelConfig(
    layers=3, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=None,
    loop_start=1, loop_end=1, loop_runs=2,
)  # fmt: skip
VOCAB = 40


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) for name, tensor in GPT(MODEL, VOCAB).state_dict().items()}
    path = tmp_path / "model.safetensors"
    artifacts.save(
        path, state, schema="pgolf.checkpoint", stage="train", params={"model": to_dict(MODEL), "train": {"seed": 4}},
        inputs={"manifest": "00"}, extra={"vocab_size": VOCAB, "tokenizer": "ab" * 32},
    )  # fmt: skip
    return path


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(checkpoint_parts, "PART_BYTES", 20_000)


def bfloat16(value):
    """Round to nearest even to the upper half of a float32, in plain Python."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def test_round_trip_rounds_the_matrices_and_nothing_else(checkpoint, tmp_path, small_parts):
    written = split_checkpoint(checkpoint, tmp_path / "parts")
    assert sorted(written) == sorted((tmp_path / "parts").iterdir())
    assert len(written) > 2
    assert all(path.stat().st_size <= 20_000 for path in written)
    out = tmp_path / "joined.safetensors"
    join_checkpoint(tmp_path / "parts", out)
    before, after = load_checkpoint(checkpoint), load_checkpoint(out)
    assert set(after.state) == set(before.state)
    matrices = set(matrix_inputs(MODEL))
    for name, tensor in before.state.items():
        found = after.state[name]
        assert (found.dtype, found.shape) == (torch.float32, tensor.shape)
        if name not in matrices:
            assert found.numpy().tobytes() == tensor.numpy().tobytes(), name
    for name in matrices:
        expected = np.array([bfloat16(value) for value in before.state[name].flatten().tolist()], np.float32)
        assert np.array_equal(after.state[name].flatten().numpy(), expected), name
    assert (after.config, after.vocab_size, after.tokenizer) == (before.config, before.vocab_size, before.tokenizer)
    metas = [artifacts.load(path, schema="pgolf.checkpoint", made_by="train")[1] for path in (checkpoint, out)]
    assert metas[1] == metas[0] | {"rounded": "bfloat16"}


def test_rounded_checkpoint_survives_without_further_change(checkpoint, tmp_path):
    files = [checkpoint, tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number in (0, 1):
        split_checkpoint(files[number], tmp_path / f"parts{number}")
        join_checkpoint(tmp_path / f"parts{number}", files[number + 1])
    assert files[1].read_bytes() == files[2].read_bytes()


def test_splitting_is_deterministic(checkpoint, tmp_path, small_parts):
    first, second = (split_checkpoint(checkpoint, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_sixteen_mebibytes_in_at_most_eight_files():
    assert checkpoint_parts.PART_BYTES == 16 * 2**20
    assert checkpoint_parts.MAX_PARTS + 1 <= 8


@pytest.mark.parametrize("name", ["part-00", "part-01", INDEX])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "longer"])
def test_every_damage_is_seen(checkpoint, tmp_path, small_parts, name, damage):
    split_checkpoint(checkpoint, tmp_path / "parts")
    path = tmp_path / "parts" / name
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data + b"x")
    with pytest.raises(InputError):
        join_checkpoint(tmp_path / "parts", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def swap(index):
    index["tensors"][0][2] = [*index["tensors"][0][2], 2]


@pytest.mark.parametrize(("change", "message"), [
    (lambda index: index.update(schema="pgolf.tokens"), "no index of checkpoint parts"),
    (lambda index: index.update(version=2), "no index of checkpoint parts"),
    (lambda index: index.pop("parts"), "damaged"),
    (lambda index: index["parts"].pop(), r"damaged|does not unpack"),
    (lambda index: index["parts"][0].update(bytes="many"), "damaged"),
    (lambda index: index["tensors"].pop(), "does not unpack"),
    (swap, "does not unpack"),
    (lambda index: index["tensors"][0].__setitem__(2, [-1]), "damaged|does not unpack"),
    (lambda index: index["tensors"][0].__setitem__(2, [2**40]), "declares"),
    (lambda index: index["tensors"][0].__setitem__(1, "float64"), "damaged"),
    (lambda index: index["meta"].pop("params"), "damaged"),
    (lambda index: index.update(meta=[1]), "damaged"),
])  # fmt: skip
def test_wrong_index_is_refused(checkpoint, tmp_path, small_parts, change, message):
    split_checkpoint(checkpoint, tmp_path / "parts")
    index = json.loads((tmp_path / "parts" / INDEX).read_bytes())
    change(index)
    (tmp_path / "parts" / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        join_checkpoint(tmp_path / "parts", tmp_path / "out.safetensors")


def test_what_is_no_checkpoint_and_what_is_too_large_is_refused(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is missing"):
        split_checkpoint(tmp_path / "none.safetensors", tmp_path / "parts")
    artifacts.save(tmp_path / "x.safetensors", {}, schema="pgolf.t", stage="train", params={}, inputs={})
    with pytest.raises(InputError, match=r"`pgolf\.t` version 1, expected `pgolf\.checkpoint`"):
        split_checkpoint(tmp_path / "x.safetensors", tmp_path / "parts")
    monkeypatch.setattr(checkpoint_parts, "PART_BYTES", 1000)
    with pytest.raises(InputError, match="7 parts hold fewer"):
        split_checkpoint(checkpoint, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_nothing_is_overwritten_unasked(checkpoint, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        split_checkpoint(checkpoint, full)
    assert [path.name for path in full.iterdir()] == ["precious"]


def pgolf(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done


def test_commands_split_join_and_refuse_to_overwrite(checkpoint, tmp_path):
    pgolf("checkpoint", "split", checkpoint, tmp_path / "parts")
    shutil.copytree(tmp_path / "parts", tmp_path / "copy")
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    pgolf("checkpoint", "join", tmp_path / "copy", out, code=2)
    assert out.read_text() == "precious"
    pgolf("checkpoint", "join", tmp_path / "copy", out, "--force")
    assert load_checkpoint(out).vocab_size == VOCAB
    pgolf("checkpoint", "split", out, tmp_path / "parts", code=2)


def test_commands_run_where_little_is_installed(checkpoint, tmp_path):
    missing = ("ruamel.yaml", "sentencepiece", "dvc", "brotli", "matplotlib", "huggingface_hub")
    program = f"import sys\nsys.modules.update(dict.fromkeys({missing}))\nfrom pgolf.cli import main; main()"
    command = [sys.executable, "-c", program, "checkpoint", "split", checkpoint, tmp_path / "parts"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "part-00" in done.stderr
