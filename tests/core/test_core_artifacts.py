import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from pgolf import artifacts
from pgolf.errors import InputError

SAVE = """
import sys
from pathlib import Path
import torch
from pgolf import artifacts
names = ["w", "a", "z.q", "m", "b"]
if sys.argv[2] == "reversed":
    names.reverse()
tensors = {name: torch.arange(6.0).reshape(2, 3) * (ord(name[0]) % 7) for name in names}
params = {name: {"x": 1, "y": 0.1} for name in names}
artifacts.save(Path(sys.argv[1]), tensors, schema="pgolf.t", stage="train", params=params,
               inputs={name: "00" for name in names}, extra={"vocab_size": 3, "tokenizer": "t"})
"""

INTERRUPTED = """
import sys, time
from pathlib import Path
from pgolf import artifacts
root = Path(sys.argv[1])
with artifacts.atomic_file(root / "model.bin") as file, artifacts.atomic_folder(root / "tokens") as folder:
    file.write_bytes(b"half a new file")
    (folder / "shard.bin").write_bytes(b"half a new shard")
    print("ready", flush=True)
    time.sleep(60)
"""


def save(path, **changes):
    tensors = {"b": torch.arange(6).reshape(2, 3), "a": torch.ones(2, dtype=torch.float16)}
    options = {"schema": "pgolf.t", "version": 2, "stage": "train", "params": {"k": 1}, "inputs": {"x": "00"}}
    artifacts.save(path, tensors, **(options | changes))
    return tensors


def load(path, **changes):
    return artifacts.load(path, **({"schema": "pgolf.t", "version": 2, "made_by": "train"} | changes))


def test_round_trip_keeps_tensors_and_provenance(tmp_path):
    path = tmp_path / "new folder/t.safetensors"
    tensors = save(path, extra={"vocab_size": 7})
    found, meta = load(path)
    assert set(found) == {"a", "b"}
    assert all(found[name].dtype == t.dtype and torch.equal(found[name], t) for name, t in tensors.items())
    assert meta == {
        "schema": "pgolf.t",
        "version": 2,
        "stage": "train",
        "params": {"k": 1},
        "inputs": {"x": "00"},
        "vocab_size": 7,
    }


def test_views_and_gradients_are_saved_as_plain_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    artifacts.save(tmp_path / "t", {"v": base.T[1:]}, schema="s", stage="x", params={}, inputs={})
    found, _ = artifacts.load(tmp_path / "t", schema="s", made_by="x")
    assert torch.equal(found["v"], base.detach().T[1:])


def test_there_is_one_metadata_key_of_canonical_json(tmp_path):
    save(tmp_path / "t.safetensors")
    data = (tmp_path / "t.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert list(header["__metadata__"]) == ["pgolf"]
    text = header["__metadata__"]["pgolf"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_bytes_are_the_same_in_three_processes(tmp_path):
    hashes = set()
    for index, order in enumerate(("given", "reversed", "given")):
        path = tmp_path / f"{index}.safetensors"
        environment = os.environ | {"PYTHONHASHSEED": str(index)}
        subprocess.run([sys.executable, "-c", SAVE, str(path), order], check=True, env=environment, timeout=300)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


def garbage(path):
    path.write_bytes(bytes(range(256)) * 4)


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    save(path)
    path.write_bytes(path.read_bytes()[:-3])


def header_only(path):
    save(path)
    path.write_bytes(path.read_bytes()[:40])


def huge_header(path):
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")


def metadata(text):
    def write(path):
        safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata=text)

    return write


FAULTS = {
    "missing": (lambda path: None, r"is missing: run `pgolf train` first"),
    "wrong schema": (lambda path: save(path, schema="pgolf.u"), r"holds `pgolf.u` version 2, expected `pgolf.t`"),
    "older version": (lambda path: save(path, version=1), r"holds `pgolf.t` version 1, expected `pgolf.t` version 2"),
    "newer version": (lambda path: save(path, version=3), r"holds `pgolf.t` version 3, expected"),
    "truncated": (truncated, r"is damaged .*: run `pgolf train` again"),
    "half a header": (header_only, r"is damaged .*: run `pgolf train` again"),
    "header of an exabyte": (huge_header, r"is damaged .*: run `pgolf train` again"),
    "empty": (empty, r"is damaged .*: run `pgolf train` again"),
    "garbage": (garbage, r"is damaged .*: run `pgolf train` again"),
    "of another program": (metadata({"format": "pt"}), r"holds no pgolf artifact, expected `pgolf.t`"),
    "without metadata": (metadata(None), r"holds no pgolf artifact"),
    "metadata no JSON": (metadata({"pgolf": "{"}), r"is damaged"),
    "metadata a list": (metadata({"pgolf": "[1]"}), r"holds no pgolf artifact"),
    "metadata null": (metadata({"pgolf": "null"}), r"holds no pgolf artifact"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_loading_refuses_by_name(tmp_path, fault):
    path = tmp_path / "model.safetensors"
    write, message = FAULTS[fault]
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [(None, "is missing: run `pgolf train` first"), (b"{", "is not valid JSON"), (b"\xff\xfe", "is not valid JSON")],
)
def test_reading_json_refuses_by_name(tmp_path, data, message):
    path = tmp_path / "train.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=message):
        artifacts.read_json(path, "train")


def test_json_is_sorted_and_keeps_full_precision(tmp_path):
    artifacts.write_json(tmp_path / "m.json", {"b": 0.1 + 0.2, "a": 1.0610758712345678})
    text = (tmp_path / "m.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert artifacts.read_json(tmp_path / "m.json", "train") == {"b": 0.1 + 0.2, "a": 1.0610758712345678}
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(tmp_path / "m.json", {"a": float("nan")})
    assert artifacts.read_json(tmp_path / "m.json", "train")["b"] == 0.1 + 0.2


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert artifacts.sha256(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def old_state(root):
    (root / "tokens").mkdir()
    (root / "tokens/shard.bin").write_bytes(b"old shard")
    (root / "tokens/gone.bin").write_bytes(b"old too")
    (root / "model.bin").write_bytes(b"old file")
    return listing(root)


def test_success_replaces_whole_and_leaves_nothing_else(tmp_path):
    old_state(tmp_path)
    with artifacts.atomic_file(tmp_path / "model.bin") as file, artifacts.atomic_folder(tmp_path / "tokens") as folder:
        assert (tmp_path / "model.bin").read_bytes() == b"old file"
        assert {file.parent, folder.parent} == {tmp_path}, "a rename is atomic within one folder only"
        file.write_bytes(b"new file")
        (folder / "sub").mkdir()
        (folder / "sub/shard.bin").write_bytes(b"new shard")
    assert listing(tmp_path) == {"model.bin": b"new file", "tokens/sub/shard.bin": b"new shard"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "tokens"]
    assert (tmp_path / "model.bin").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o755


def test_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    plain = os.fsync

    def spy(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        assert not (tmp_path / "t.bin").exists()
        assert not (tmp_path / "tokens").exists()
        plain(handle)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", spy)
    artifacts.write_bytes(tmp_path / "t.bin", b"x")
    (tmp_path / "t.bin").unlink()
    with artifacts.atomic_folder(tmp_path / "tokens") as folder:
        (folder / "a.bin").write_bytes(b"a")
        (folder / "b.bin").write_bytes(b"b")
    assert sorted(os.path.basename(name) for name in synced if name.endswith(".bin")) == ["a.bin", "b.bin"]
    assert len(synced) == 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_error_in_the_middle_changes_nothing(tmp_path, error, existing):
    before = old_state(tmp_path) if existing else {}
    with contextlib.suppress(error), artifacts.atomic_file(tmp_path / "model.bin") as file:
        file.write_bytes(b"half")
        raise error
    with contextlib.suppress(error), artifacts.atomic_folder(tmp_path / "tokens") as folder:
        (folder / "shard.bin").write_bytes(b"half")
        raise error
    assert listing(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["model.bin", "tokens"] if existing else [])


def test_error_while_tensors_are_written_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    save(path)
    before = path.read_bytes()

    def disk_full(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        save(path, params={"k": 2})
    assert listing(tmp_path) == {"t.safetensors": before}


@pytest.mark.parametrize("failing", [1, 2])
def test_error_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch, failing):
    before = old_state(tmp_path)
    calls = []
    plain = os.replace

    def fails(source, target, **options):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return plain(source, target, **options)

    def write():
        with artifacts.atomic_folder(tmp_path / "tokens") as folder:
            (folder / "shard.bin").write_bytes(b"new")
            monkeypatch.setattr(os, "replace", fails)

    with pytest.raises(OSError, match="Input/output"):
        write()
    assert len(calls) >= failing
    monkeypatch.undo()
    assert listing(tmp_path) == before


def test_killed_writer_leaves_the_old_and_no_plausible_new(tmp_path):
    before = old_state(tmp_path)
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    visible = {name: data for name, data in listing(tmp_path).items() if not name.startswith(".")}
    assert visible == before
    assert len(listing(tmp_path)) > len(before), "the writer was not in the middle"
    assert all(not path.name.endswith(".bin") for path in tmp_path.iterdir() if path.name.startswith("."))
    with artifacts.atomic_file(tmp_path / "model.bin") as file:
        file.write_bytes(b"new file")
    assert (tmp_path / "model.bin").read_bytes() == b"new file"
