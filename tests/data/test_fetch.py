"""`pgolf fetch` against a hub on this machine: what it says, gets, verifies, refuses and leaves behind."""

import dataclasses
import hashlib
import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub
from tiny_exports import VAL_DOCUMENTS, make

from pgolf.data import fetch
from pgolf.data.catalogue import CATALOGUE, Documents
from pgolf.data.fetch import complete, download, plan_fetch, summary
from pgolf.data.shards import read_shard, write_shard
from pgolf.errors import InputError
from pgolf.submit.closure import import_closure

ROOT = Path(__file__).parents[2]
VAL, SIDECAR, TRAIN = "fineweb_val_000000.bin", "fineweb_val_bytes_000000.bin", "fineweb_train_000000.bin"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return {"tiny": make(folder / "tiny", "tiny", False), "caps": make(folder / "caps", "caps", True)}


@pytest.fixture
def hub(monkeypatch, exports):
    """The hub with both exports, in the catalogue too."""
    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 512)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the library's retries
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    for name, tiny in exports.items():
        monkeypatch.setitem(CATALOGUE, name, tiny.export)
        server.add(tiny.repo, tiny.files)
    yield server
    server.close()


def get(folder, name="tiny", **options):
    plan = plan_fetch(name, folder, **options)
    download(plan)
    return plan, dict(complete(plan))


def path_of(exports, name, file):
    """Where a file lies in its repository."""
    (path,) = [path for path in exports[name].files if path.endswith("/" + file)]
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def refused(match, *args, **options):
    with pytest.raises(InputError, match=match) as error:
        get(*args, **options)
    return str(error.value)


@pytest.mark.parametrize("name", ["tiny", "caps"])
def test_a_folder_of_verified_files_with_a_manifest(tmp_path, hub, exports, name):
    tiny = exports[name]
    plan, rows = get(tmp_path / "a", name)
    expected = {path.rsplit("/")[-1]: data for path, data in tiny.files.items() if path != "README.md"}
    assert names(tmp_path / "a") == sorted([*expected, "published.json"])
    assert all((tmp_path / "a" / file).read_bytes() == data for file, data in expected.items())
    assert rows["validation documents"] == str(VAL_DOCUMENTS)
    assert rows["manifest of the repository"] == "agrees"
    assert ("sidecar" in rows["bytes of validation"]) == (name == "caps")
    assert f"{tiny.metrics['val_bytes']:,}" in rows["bytes of validation"]
    manifest = json.loads((tmp_path / "a" / "published.json").read_text())
    assert (manifest["schema"], manifest["name"], manifest["repo"]) == ("pgolf.published", name, tiny.repo)
    assert manifest["revision"] == plan.revision == hub.repos[tiny.repo]["main"][0]
    assert {(entry["name"], entry["size"]) for entry in manifest["files"]} == {(n, len(d)) for n, d in expected.items()}


def test_a_second_run_downloads_nothing_and_changes_nothing(tmp_path, hub):
    get(tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    hub.requests.clear()
    plan, _ = get(tmp_path)
    assert (hub.requests, plan.todo, plan.todo_size) == ([], [], 0)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert {p for p in before if before[p] != after[p]} <= {tmp_path / "published.json"}
    assert {p: v[1] for p, v in before.items()} == {p: v[1] for p, v in after.items()}


def test_the_plan_says_what_and_how_much_and_writes_nothing(tmp_path, hub, exports):
    folder = tmp_path / "new"
    plan = plan_fetch("caps", folder, train_shards=1)
    rows = {row[0]: row[1:] for row in summary(plan)}
    vals = [path for path in exports["caps"].files if "fineweb_val_0" in path]
    assert rows["validation shards"][0] == rows["byte sidecar"][0] == len(vals) > 0
    assert rows["training shards"][0] == rows["manifest.json"][0] == rows["caps_bpe.model"][0] == 1
    assert rows["together"][0] == 2 * len(vals) + 3
    assert plan.size == plan.todo_size == sum(item.remote.size for item in plan.items)
    assert not folder.exists()
    assert hub.requests == []


def test_first_training_shards_and_later_more(tmp_path, hub, exports):
    available = sum("fineweb_train" in path for path in exports["tiny"].files)
    assert available > 2
    get(tmp_path, train_shards=1)
    assert [name for name in names(tmp_path) if "train" in name] == [TRAIN]
    hub.requests.clear()
    get(tmp_path, train_shards=2)
    assert [path.rsplit("/")[-1] for path, _ in hub.requests] == ["fineweb_train_000001.bin"]
    plan, _ = get(tmp_path, train_shards=0)  # what is here stays part of the export
    assert [item.remote.name for item in plan.items if "train" in item.remote.name][-1] == "fineweb_train_000001.bin"
    refused(f"--train-shards is 99: someone/tiny has {available}", tmp_path, train_shards=99)
    refused("--train-shards is -1", tmp_path, train_shards=-1)


def test_an_interrupted_file_goes_on_where_it_was(tmp_path, hub, exports):
    path = path_of(exports, "tiny", VAL)
    hub.breaks[path] = [1500, *[0] * 10]  # then the server gives up altogether
    refused("cannot be reached", tmp_path)
    assert not (tmp_path / VAL).exists()
    assert not (tmp_path / "published.json").exists()
    partial = next((tmp_path / ".partial").glob(VAL + ".*"))
    assert partial.read_bytes() == exports["tiny"].files[path][:1024]  # two whole chunks
    hub.breaks.clear()
    hub.requests.clear()
    plan = plan_fetch("tiny", tmp_path)
    assert plan.todo_size == sum(item.remote.size for item in plan.todo) - 1024
    get(tmp_path)
    assert (path, 1024) in hub.requests
    assert (path, 0) not in hub.requests
    assert (tmp_path / VAL).read_bytes() == exports["tiny"].files[path]
    assert not (tmp_path / ".partial").exists()


def test_a_short_break_is_bridged_in_the_same_run(tmp_path, hub, exports):
    path = path_of(exports, "tiny", VAL)
    hub.breaks[path] = [1500]
    get(tmp_path)
    assert [first for asked, first in hub.requests if asked == path] == [0, 1024]


def test_a_damaged_partial_file_is_started_over(tmp_path, hub, exports):
    path = path_of(exports, "tiny", VAL)
    hub.breaks[path] = [1500, *[0] * 10]
    refused("cannot be reached", tmp_path)
    partial = next((tmp_path / ".partial").glob(VAL + ".*"))
    partial.write_bytes(b"x" * 1024)
    hub.breaks.clear()
    get(tmp_path)
    assert (tmp_path / VAL).read_bytes() == exports["tiny"].files[path]


def flip(data):
    return data[:1500] + bytes([data[1500] ^ 1]) + data[1501:]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-100], lambda data: POINTER, lambda data: b""])
@pytest.mark.parametrize("file", [VAL, TRAIN, "tiny_bpe.model"])
def test_damaged_files_are_fetched_again_and_no_others(tmp_path, hub, exports, damage, file):
    get(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    hub.requests.clear()
    get(tmp_path)
    path = path_of(exports, "tiny", file)
    assert hub.requests == [(path, 0)]
    assert (tmp_path / file).read_bytes() == exports["tiny"].files[path]


@pytest.mark.parametrize(
    ("damage", "message"),
    [(flip, "other bytes than its listing says"), (lambda data: data[:-100], "short"), (lambda data: POINTER, "short")],
)
def test_what_the_hub_serves_wrongly_gets_no_name(tmp_path, hub, exports, damage, message):
    path = path_of(exports, "tiny", VAL)
    hub.served[path] = damage(exports["tiny"].files[path])
    refused(message, tmp_path)
    assert not (tmp_path / VAL).exists()
    assert not (tmp_path / "published.json").exists()
    hub.served.clear()
    get(tmp_path)
    assert (tmp_path / VAL).read_bytes() == exports["tiny"].files[path]


def test_two_exports_in_one_folder(tmp_path, hub):
    get(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    message = refused("holds the export tiny of someone/tiny, not caps", tmp_path, "caps")
    assert "--to" in message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kept", ["all", "no sidecar", "one shard", "tokenizer"])
def test_caseops_files_on_standard_paths(tmp_path, hub, exports, kept):
    """PR 2071: same names, same vocabulary size. Nothing is overwritten, nothing mixed, no manifest written."""
    get(tmp_path, "caps")
    (tmp_path / "published.json").unlink()
    (tmp_path / "caps_bpe.model").rename(tmp_path / "tiny_bpe.model")
    for path in list(tmp_path.iterdir()):
        bad = {
            "all": False,
            "no sidecar": "_bytes_" in path.name,
            "one shard": path.name != VAL,
            "tokenizer": path.suffix != ".model",
        }
        if bad[kept]:
            path.unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "--to" in refused("another export|is an intact file of another", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_manifest_of_another_repository_is_replaced(tmp_path, hub, exports):
    (tmp_path / "manifest.json").write_text('{"datasets": [{"name": "fineweb10B_tiny", "stats": {"docs_val": 3}}]}')
    _, rows = get(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == exports["tiny"].files["datasets/manifest.json"]
    assert rows["manifest of the repository"] == "agrees"


def test_a_repository_manifest_that_is_wrong_is_called_so(tmp_path, hub, exports):
    stale = {"datasets": [{"name": "fineweb10B_tiny", "stats": {"docs_val": 10_000}}]}
    hub.add("someone/stale", {**exports["tiny"].files, "datasets/manifest.json": json.dumps(stale).encode()})
    _, rows = get(tmp_path, repo="someone/stale")
    assert rows["manifest of the repository"] == "wrong: it says docs_val is 10000, the shards have 21"


def test_another_revision_is_not_mixed_in(tmp_path, hub, exports):
    first, _ = get(tmp_path)
    files = dict(exports["tiny"].files)
    path = path_of(exports, "tiny", TRAIN)
    files[path] = files[path][:-2] + b"\x09\x00"
    hub.add("someone/tiny", files)
    assert first.revision in refused("intact file of revision", tmp_path)
    again, _ = get(tmp_path, revision=first.revision)
    assert again.revision == first.revision


def test_a_new_commit_with_the_same_data_costs_nothing(tmp_path, hub, exports):
    get(tmp_path)
    commit = hub.add("someone/tiny", {**exports["tiny"].files, "NEWS.json": b"{}"})
    hub.requests.clear()
    plan, _ = get(tmp_path)
    assert hub.requests == []
    assert plan.revision == commit == json.loads((tmp_path / "published.json").read_text())["revision"]


def test_caseops_without_sidecar(tmp_path, hub, exports):
    files = {path: data for path, data in exports["caps"].files.items() if "_bytes_" not in path}
    hub.add("someone/caps", files)
    refused("no byte sidecar", tmp_path, "caps")
    assert names(tmp_path) == []


def change_val(exports, name, change, split="val"):
    """The export with another first validation shard."""
    tiny = exports[name]
    files = dict(tiny.files)
    path = path_of(exports, name, f"fineweb_{split}_000000.bin")
    shard = tiny.folder / "changed.bin"
    shard.write_bytes(files[path])
    changed = change(read_shard(shard).copy())
    write_shard(shard, changed)
    files[path] = shard.read_bytes()
    return files


def without_first_bos(tokens):
    tokens[0] = 2
    return tokens


def one_more_document(tokens):
    tokens[len(tokens) // 2] = 1
    return tokens


def unknown_token(tokens):
    tokens[5] = 400
    return tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_first_bos, "starts with token 2, not with BOS"),
        (one_more_document, "has 22 validation documents, the challenge's split has 21"),
        (unknown_token, "token id 400 is outside the tokenizer's 340 pieces"),
        (lambda tokens: tokens[:-1], "another tokenization of the documents"),
    ],
)
def test_shards_that_are_not_the_split(tmp_path, hub, exports, change, message):
    hub.add("someone/tiny", change_val(exports, "tiny", change))
    refused(message, tmp_path)
    assert not (tmp_path / "published.json").exists()


def test_unknown_tokens_beside_a_sidecar(tmp_path, hub, exports):
    hub.add("someone/caps", change_val(exports, "caps", unknown_token))
    refused("holds token 400, its vocabulary has 340", tmp_path, "caps")


def test_counts_that_are_off_by_more_than_a_thousandth(tmp_path, hub, monkeypatch, exports):
    export = exports["tiny"].export
    for factor, accepted in ((1.0009, True), (0.9991, True), (1.0011, False), (0.9989, False)):
        other = dataclasses.replace(export, tokens_per_byte=export.tokens_per_byte * factor)
        monkeypatch.setitem(CATALOGUE, "tiny", other)
        if accepted:
            get(tmp_path / str(factor))
        else:
            refused("targets per byte, expected", tmp_path / str(factor))


def test_a_sidecar_that_charges_operators(tmp_path, hub, exports):
    """The mix-up of PR 2071 as a sidecar: 3 bytes, the operator's UTF-8 length, for every operator."""
    first = path_of(exports, "caps", VAL)
    (tmp_path / "v.bin").write_bytes(exports["caps"].files[first])
    tokens = read_shard(tmp_path / "v.bin")

    def charge(counts):
        counts[(tokens >= 4) & (tokens <= 7)] = 3
        return counts

    hub.add("someone/caps", change_val(exports, "caps", charge, "val_bytes"))
    refused("do not belong together", tmp_path / "out", "caps")


def test_a_tokenizer_of_the_other_kind(tmp_path, hub, exports):
    for name, other in (("tiny", "caps"), ("caps", "tiny")):
        model = exports[other].files[path_of(exports, other, f"{other}_bpe.model")]
        hub.add(f"someone/{name}", {**exports[name].files, path_of(exports, name, f"{name}_bpe.model"): model})
        refused("does not belong to these shards", tmp_path / name, name)


def test_a_tokenizer_with_another_hash(tmp_path, hub, monkeypatch, exports):
    monkeypatch.setitem(CATALOGUE, "tiny", dataclasses.replace(exports["tiny"].export, tokenizer_sha256="0" * 64))
    refused("published is 0000", tmp_path)


def documents_repo(hub, monkeypatch, **changes):
    text = b'{"text": "one"}\n' * 5
    sidecar = {"num_docs": 5, "docs_val": 3, "docs_bytes": len(text), "docs_sha256": hashlib.sha256(text).hexdigest()}
    files = {
        "datasets/docs_selected.jsonl": text,
        "datasets/docs_selected.source_manifest.json": json.dumps({**sidecar, **changes}).encode(),
        "old/docs_selected.jsonl": b"",
    }
    hub.add("someone/docs", files)
    monkeypatch.setitem(CATALOGUE, "docs", Documents(repo="someone/docs", val_documents=3))


def test_documents(tmp_path, hub, monkeypatch):
    documents_repo(hub, monkeypatch)
    _, rows = get(tmp_path, "docs")
    assert names(tmp_path) == ["docs_selected.jsonl", "docs_selected.source_manifest.json", "published.json"]
    assert rows["validation documents"] == "the first 3 of 5"
    assert rows["docs_sha256 of the manifest"] == "the file's SHA-256"
    hub.requests.clear()
    get(tmp_path, "docs")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"docs_val": 10_000}, "says 10000 validation"), ({"docs_bytes": 9}, "its manifest says 9")],
)
def test_documents_that_are_not_the_challenges(tmp_path, hub, monkeypatch, changes, message):
    documents_repo(hub, monkeypatch, **changes)
    refused(message, tmp_path, "docs")
    assert not (tmp_path / "published.json").exists()


def test_what_the_hub_refuses(tmp_path, hub):
    refused("has no dataset someone/none", tmp_path, repo="someone/none")
    refused("must be OWNER/NAME", tmp_path, repo="a/b/c")
    refused("has no revision 'v9'", tmp_path, revision="v9")
    refused("is not a published export; did you mean `tiny`", tmp_path, "tyny")
    hub.gated.add("someone/tiny")
    refused("is gated", tmp_path)


def test_no_network(tmp_path, hub, monkeypatch):
    hub.close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = refused("cannot be reached", tmp_path / "new")
    assert "127.0.0.1:9" in message
    assert "\n" not in message
    assert not (tmp_path / "new").exists()


def test_forbidden_network(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE forbids downloads", tmp_path)


def test_without_the_package(tmp_path, hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("pip install huggingface_hub", tmp_path)


def test_too_little_disk(tmp_path, hub, monkeypatch):
    plan = plan_fetch("tiny", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=plan.todo_size - 1))
    refused("are to be downloaded", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=plan.todo_size))
    get(tmp_path)


def test_two_at_once(tmp_path, hub):
    plan = plan_fetch("tiny", tmp_path)
    with fetch._locked(plan), pytest.raises(InputError, match="another `pgolf fetch` is at work"):
        download(plan)


def test_an_interrupt_stops_the_other_downloads(tmp_path, hub):
    """The first progress report interrupts: nothing goes on in the background, the partial files stay."""
    plan, reports = plan_fetch("tiny", tmp_path), []

    def interrupt(phase, done, total):
        reports.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(plan, interrupt)
    assert not list(tmp_path.glob("*.bin"))
    assert len(reports) <= fetch.WORKERS
    get(tmp_path)


def test_progress_ends_with_everything(tmp_path, hub):
    calls = []
    plan = plan_fetch("tiny", tmp_path)
    download(plan, lambda *call: calls.append(call))
    assert calls[-1] == ("download", plan.size, plan.size)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    calls.clear()
    plan_fetch("tiny", tmp_path, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("check", plan.size, plan.size)


def test_the_command(tmp_path, hub, monkeypatch, capsys):
    from pgolf.cli import app

    def run(*args, code=0):
        with pytest.raises(SystemExit) as stopped:
            app(["fetch", *args])
        assert stopped.value.code == code
        return " ".join(capsys.readouterr().err.split())

    monkeypatch.chdir(tmp_path)
    assert "romeerp/parameter-golf-caseops-v1" in run()
    printed = run("tiny", "--dry-run", "--train-shards", "1")
    assert "training shards │ 1" in printed
    assert names(tmp_path) == []
    printed = run("tiny", "--train-shards", "1")
    assert "data/published/tiny/published.json, tokenize.vocab_size 340, tokenize.case_ops false" in printed
    assert (tmp_path / "data/published/tiny/published.json").exists()
    assert "error: " in run("tiny", "--revision", "v9", code=2)


def test_only_one_module_imports_huggingface_hub_and_no_stage_reaches_it():
    importers = [path.name for path in (ROOT / "pgolf").rglob("*.py") if "from huggingface_hub" in path.read_text()]
    assert importers == ["hub.py"]
    stages = [f"stages.{path.stem}" for path in (ROOT / "stages").glob("[!_]*.py")]
    assert "pgolf.data.adoption" in import_closure(stages, ROOT)
    assert not {"pgolf.data.hub", "pgolf.data.fetch"} & set(import_closure([*stages, "pgolf.runtime"], ROOT))
