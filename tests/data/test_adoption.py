"""A fetched export in the pipeline: the same tokens, bytes and metrics as from its documents, and nothing unchecked."""

import dataclasses
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from tiny_exports import VAL_DOCUMENTS, make

from pgolf.data import adoption
from pgolf.data.adoption import adopt_published, place
from pgolf.data.catalogue import CATALOGUE, Documents
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.published import Published, describe, manifest_path
from pgolf.data.shards import read_shard
from pgolf.data.tokens import open_tokens
from pgolf.data.verify import verify
from pgolf.errors import InputError


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return {"tiny": make(folder / "tiny", "tiny", False), "caps": make(folder / "caps", "caps", True)}


@pytest.fixture(autouse=True)
def in_the_catalogue(monkeypatch, exports):
    for name, tiny in exports.items():
        monkeypatch.setitem(CATALOGUE, name, tiny.export)


def lay_out(folder, tiny, name):
    """What fetching leaves: the files under their names, and the manifest."""
    folder.mkdir()
    files = {}
    for path, data in tiny.files.items():
        if path != "README.md":
            files[path.rsplit("/")[-1]] = {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            (folder / path.rsplit("/")[-1]).write_bytes(data)
    verify(Published(folder=folder, name=name, repo=tiny.repo, revision="c" * 40, files=files), tiny.export)
    return folder


def adopt(folder, out, tiny, train_shards=None, progress=None, **settings):
    path = str(manifest_path(folder))
    data = DataConfig(train=path, val=path, train_shards=train_shards)
    config = TokenizeConfig(**{"vocab_size": 340, "case_ops": tiny.config.case_ops, **settings})
    return adopt_published(data, config, out / "tokens", out / "tokenizer.model", progress)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["tiny", "caps"])
def test_the_result_is_that_of_tokenizing_the_documents(tmp_path, exports, name):
    """Shards, sidecar (written from the byte table, or taken over), tokenizer, counts: byte for byte."""
    tiny = exports[name]
    folder = lay_out(tmp_path / "published", tiny, name)
    metrics = adopt(folder, tmp_path / "out", tiny)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (tiny.folder / "tokenizer.model").read_bytes()
    expected, found = contents(tiny.folder / "tokens"), contents(tmp_path / "out/tokens")
    manifests = [json.loads(files.pop("manifest.json")) for files in (expected, found)]
    assert found == expected
    unknown = {"documents_sha256", "raw_bytes", "overlap_documents", "tokenizer_skipped_documents"}
    for manifest in manifests:
        for split in ("train", "val"):
            for key in unknown & set(manifest[split]):
                manifest[split].pop(key)
    source = manifests[1].pop("source")
    assert manifests[0] == manifests[1]
    assert source == {"name": name, "repo": tiny.repo, "revision": "c" * 40}
    assert metrics.keys() == tiny.metrics.keys()
    unavailable = {key for key, value in metrics.items() if value == "unavailable"}
    assert unavailable == {"val_raw_bytes", "overlap_documents", "tokenizer_skipped_documents"}
    assert {key: metrics[key] for key in metrics if key not in unavailable} == {
        key: value for key, value in tiny.metrics.items() if key not in unavailable
    }


@pytest.mark.parametrize("name", ["tiny", "caps"])
def test_later_stages_open_it(tmp_path, exports, name):
    folder = lay_out(tmp_path / "published", exports[name], name)
    adopt(folder, tmp_path / "out", exports[name])
    tokens = open_tokens(tmp_path / "out/tokens", tmp_path / "out/tokenizer.model")
    assert (tokens.val_documents, tokens.val_raw_bytes) == (VAL_DOCUMENTS, None)
    assert tokens.tokens_per_byte == pytest.approx(exports[name].export.tokens_per_byte, rel=1e-12)


def test_a_prefix_of_the_training_shards(tmp_path, exports):
    tiny = exports["tiny"]
    folder = lay_out(tmp_path / "published", tiny, "tiny")
    metrics = adopt(folder, tmp_path / "out", tiny, train_shards=2)
    assert metrics["train_tokens"] == 14_000
    assert metrics["val_documents"] == VAL_DOCUMENTS
    names = sorted(path.name for path in (tmp_path / "out/tokens").glob("fineweb_train_*"))
    assert names == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    first = np.concatenate([read_shard(folder / name) for name in names])
    assert metrics["train_documents"] == (first == 1).sum()
    assert open_tokens(tmp_path / "out/tokens", tmp_path / "out/tokenizer.model").train_tokens == 14_000
    with pytest.raises(InputError, match=r"`data.train_shards` is 99.*--train-shards 99"):
        adopt(folder, tmp_path / "out", tiny, train_shards=99)


def test_progress_counts_shards(tmp_path, exports):
    calls = []
    folder = lay_out(tmp_path / "published", exports["tiny"], "tiny")
    adopt(folder, tmp_path / "out", exports["tiny"], train_shards=2, progress=lambda *call: calls.append(call))
    assert calls == [("train", 1, 2), ("train", 2, 2)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 8192}, "`tokenize.vocab_size` is 8192, the export tiny has 340: set it to 340"),
        ({"case_ops": True}, "`tokenize.case_ops` is true, the export tiny was made with `none`: set it to false"),
        ({"model": "x.model"}, "brings its tokenizer; set both to null"),
        ({"tokenizer_train_docs": 5}, "brings its tokenizer; set both to null"),
    ],
)
def test_settings_that_ask_for_another_tokenizer(tmp_path, exports, settings, message):
    folder = lay_out(tmp_path / "published", exports["tiny"], "tiny")
    with pytest.raises(InputError, match=message):
        adopt(folder, tmp_path / "out", exports["tiny"], **settings)


@pytest.mark.parametrize("name", ["fineweb_train_000001.bin", "fineweb_val_000000.bin", "tiny_bpe.model"])
@pytest.mark.parametrize("lost", [False, True])
def test_changed_files_are_refused_and_replace_nothing(tmp_path, exports, name, lost):
    tiny = exports["tiny"]
    folder = lay_out(tmp_path / "published", tiny, "tiny")
    adopt(folder, tmp_path / "out", tiny)
    before = contents(tmp_path / "out/tokens")
    data = bytearray((folder / name).read_bytes())
    (folder / name).unlink()  # in a new file: the old one may be shared
    if not lost:
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"{name} is (missing|not what was fetched).*pgolf fetch tiny --to"):
        adopt(folder, tmp_path / "out", tiny)
    assert contents(tmp_path / "out/tokens") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tokenizer.model", "tokens"]


def edit_manifest(folder, change):
    manifest = json.loads(manifest_path(folder).read_text())
    change(manifest)
    manifest_path(folder).write_text(json.dumps(manifest))


def test_caseops_without_its_sidecar(tmp_path, exports):
    folder = lay_out(tmp_path / "published", exports["caps"], "caps")
    edit_manifest(folder, lambda m: m.update(files=[f for f in m["files"] if "_bytes_" not in f["name"]]))
    with pytest.raises(InputError, match=r"case operator.*byte sidecar"):
        adopt(folder, tmp_path / "out", exports["caps"])


def test_another_export_under_the_name(tmp_path, exports):
    """A manifest that calls CaseOps shards the standard export: the tokenizer gives it away."""
    folder = lay_out(tmp_path / "published", exports["caps"], "caps")
    edit_manifest(folder, lambda m: m.update(name="tiny"))
    with pytest.raises(InputError, match="is the CaseOps tokenizer, which does not belong"):
        adopt(folder, tmp_path / "out", exports["tiny"])


def test_figures_are_compared_again(tmp_path, exports, monkeypatch):
    folder = lay_out(tmp_path / "published", exports["tiny"], "tiny")
    monkeypatch.setitem(CATALOGUE, "tiny", dataclasses.replace(exports["tiny"].export, val_documents=50_000))
    with pytest.raises(InputError, match="has 21 validation documents, the challenge's split has 50,000"):
        adopt(folder, tmp_path / "out", exports["tiny"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"published\.json is missing: run `pgolf fetch NAME"),
        ("{", "not valid JSON"),
        ("[]", "expected `pgolf.published` version 1"),
        ('{"schema": "pgolf.published", "version": 2}', "version 2, expected"),
        ('{"schema": "pgolf.published", "version": 1}', "lacks an entry"),
    ],
)
def test_manifests_that_are_none(tmp_path, exports, text, message):
    folder = lay_out(tmp_path / "published", exports["tiny"], "tiny")
    manifest_path(folder).unlink()
    if text is not None:
        manifest_path(folder).write_text(text)
    with pytest.raises(InputError, match=message):
        adopt(folder, tmp_path / "out", exports["tiny"])


def test_fetched_documents_are_no_shards(tmp_path, exports, monkeypatch):
    monkeypatch.setitem(CATALOGUE, "docs", Documents(repo="a/b"))
    published = Published(folder=tmp_path, name="docs", repo="a/b", revision="c", files={})
    manifest_path(tmp_path).write_text(json.dumps(describe(published)))
    with pytest.raises(InputError, match="a list of documents and no tokens"):
        adopt(tmp_path, tmp_path / "out", exports["tiny"])


@pytest.mark.parametrize("ways", ["any", "no reflink", "copy"])
def test_a_file_in_its_place_without_or_with_copying(tmp_path, monkeypatch, ways):
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"content" * 1000)

    def fails(*args):
        raise OSError

    if ways != "any":
        monkeypatch.setattr(adoption, "ioctl", fails)
    if ways == "copy":
        monkeypatch.setattr(os, "link", fails)
    place(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert (target.stat().st_ino == source.stat().st_ino) == (ways == "no reflink") or ways == "any"
    source.unlink()
    assert target.read_bytes() == b"content" * 1000


def test_the_stage(tmp_path, exports, monkeypatch, capsys):
    from stages.tokenize import tokenize

    lay_out(tmp_path / "published", exports["caps"], "caps")
    path = tmp_path / "published/published.json"
    (tmp_path / "params.yaml").write_text(
        f"data: {{train: {path}, val: {path}, train_shards: 1}}\ntokenize: {{vocab_size: 340, case_ops: true}}\n"
    )
    monkeypatch.chdir(tmp_path)
    tokenize()
    metrics = json.loads((tmp_path / "metrics/tokenize.json").read_text())
    assert metrics["val_bytes"] == exports["caps"].metrics["val_bytes"]
    assert metrics["val_raw_bytes"] == "unavailable"
    assert "unavailable" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "published")  # the artifacts stand on their own
    assert open_tokens(tmp_path / "artifacts/tokens", tmp_path / "artifacts/tokenizer/tokenizer.model").train_tokens
