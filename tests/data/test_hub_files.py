"""Which files of a repository are taken for an export: by their names, wherever they lie."""

import pytest

from pgolf.data.catalogue import CATALOGUE, LUT_BYTES, VAL_DOCUMENTS, Documents, Export, find
from pgolf.data.hub_files import RemoteFile, select, shard_of
from pgolf.data.verify import RHO_TOLERANCE, Validation, check_validation
from pgolf.errors import InputError

SP8192, CASEOPS = find("sp8192"), find("sp8192-caseops")
REPO = "a/b"


def listed(*paths, size=2024):
    return [RemoteFile(path, size, "0" * 64, "0" * 40) for path in paths]


def shards(folder, train, *others):
    names = [f"fineweb_train_{index:06d}.bin" for index in range(train)]
    return [f"{folder}/{name}" for name in (*names, "fineweb_val_000000.bin", *others)]


def taken(files, export=SP8192, train_shards=None, **options):
    return [file.path for file in select(files, export, train_shards, REPO, **options)]


OFFICIAL = "datasets/datasets/fineweb10B_sp8192"
MODEL = "datasets/tokenizers/fineweb_8192_bpe.model"


def test_sidecar_is_not_validation():
    assert shard_of("fineweb_val_000000.bin") == ("val", 0)
    assert shard_of("fineweb_val_bytes_000012.bin") == ("val_bytes", 12)
    assert shard_of("fineweb_train_000100.bin") == ("train", 100)
    for name in (
        "fineweb_val_bytes.bin",
        "fineweb_val_000000.bin.part",
        "x_fineweb_val_000000.bin",
        "fineweb_val_.bin",
    ):
        assert shard_of(name) is None


def test_the_official_layout_with_other_exports_beside_it():
    files = listed(
        *shards(OFFICIAL, 128),
        *shards("datasets/datasets/fineweb10B_sp4096", 143),
        *shards("old_root/datasets/fineweb10B_sp8192", 3),
        MODEL,
        "datasets/tokenizers/fineweb_8192_bpe.vocab",
        "datasets/tokenizers/fineweb_4096_bpe.model",
        "datasets/manifest.json",
        "old_root/manifest.json",
        "README.md",
    )
    paths = taken(files)
    assert paths[:3] == [f"{OFFICIAL}/fineweb_val_000000.bin", MODEL, "datasets/manifest.json"]
    assert paths[3:] == [f"{OFFICIAL}/fineweb_train_{index:06d}.bin" for index in range(80)]
    assert taken(files, train_shards=2)[3:] == paths[3:5]
    assert len(taken(files, train_shards=2, at_least=100)) == 103
    assert len(taken(files, train_shards=128, at_least=500)) == 131
    assert taken(files, train_shards=0) == paths[:3]
    with pytest.raises(InputError, match=r"--train-shards is 129: a/b has 128"):
        taken(files, train_shards=129)


def test_order_is_by_number_not_by_listing():
    files = listed(*shards(OFFICIAL, 12), MODEL)
    assert taken(files[::-1]) == taken(files)


def test_fewer_shards_than_the_default():
    assert len(taken(listed(*shards(OFFICIAL, 10), MODEL))) == 12


@pytest.mark.parametrize("folder", ["x/y/fineweb10B_sp8192", "data", "deep/er/and/deeper"])
def test_other_layouts(folder):
    files = listed(*shards(folder, 2), "tok/any.model", "manifest.json")
    assert taken(files)[:2] == [f"{folder}/fineweb_val_000000.bin", "tok/any.model"]
    assert taken(files)[-2:] == shards(folder, 2)[:2]
    assert ("manifest.json" in taken(files)) == (folder == "data")  # two folders above the shards


def test_a_repository_root_without_folders():
    names = [path.removeprefix("x/") for path in shards("x", 2)]
    assert taken(listed(*names, "a.model", "manifest.json")) == [names[-1], "a.model", "manifest.json", *names[:2]]


def test_caseops_needs_its_sidecar():
    folder = f"datasets/datasets/{CASEOPS.dataset}"
    complete = listed(*shards(folder, 80, "fineweb_val_bytes_000000.bin"), f"datasets/tokenizers/{CASEOPS.tokenizer}")
    assert taken(complete, CASEOPS)[:2] == [
        f"{folder}/fineweb_val_000000.bin",
        f"{folder}/fineweb_val_bytes_000000.bin",
    ]
    without = [file for file in complete if "_bytes_" not in file.path]
    with pytest.raises(InputError, match=r"no byte sidecar fineweb_val_bytes"):
        taken(without, CASEOPS)
    elsewhere = [*without, *listed("datasets/datasets/other/fineweb_val_bytes_000000.bin")]
    with pytest.raises(InputError, match=r"no byte sidecar"):
        taken(elsewhere, CASEOPS)
    two = [*complete, *listed(f"{folder}/fineweb_val_000001.bin")]
    with pytest.raises(InputError, match=r"2 validation shards, 1 byte sidecars"):
        taken(two, CASEOPS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (listed(MODEL), "no one folder fineweb10B_sp8192 .found: none with"),
        (listed(*shards("a", 1), *shards("b", 1), MODEL), "no one folder fineweb10B_sp8192 .found: a, b"),
        (listed(*shards(OFFICIAL, 1)), "no one tokenizer fineweb_8192_bpe.model .found: none"),
        (listed(*shards(OFFICIAL, 1), "a.model", "b.model"), "no one tokenizer .* .found: a.model, b.model"),
        (
            [f for f in listed(*shards(OFFICIAL, 5), MODEL) if "000003" not in f.path],
            "lacks shard 3 of the train split",
        ),
        (listed(*shards(OFFICIAL, 1), MODEL, size=133), "133 bytes in .*: a Git LFS pointer"),
    ],
)
def test_incomplete_repositories(files, message):
    with pytest.raises(InputError, match=message):
        taken(files)


def test_documents_and_their_manifest():
    files = listed("datasets/docs_selected.jsonl", "datasets/docs_selected.source_manifest.json", "x/a.jsonl")
    assert taken(files, Documents(repo=REPO)) == [file.path for file in files[1::-1]]
    with pytest.raises(InputError, match=r"no one file docs_selected\.source_manifest\.json"):
        taken(files[:1], Documents(repo=REPO))


def test_the_catalogue_has_the_figures_of_the_published_logs():
    """N / B of the logs, to the digits that they give, and the bytes that PR 2071 should have divided by."""
    exports = {name: entry for name, entry in CATALOGUE.items() if isinstance(entry, Export)}
    assert {name: entry.vocab_size for name, entry in exports.items()} == {
        "sp1024": 1024, "sp4096": 4096, "sp8192": 8192, "sp8192-caseops": 8192,
    }  # fmt: skip
    assert round(SP8192.tokens_per_byte, 5) == 0.26834
    assert round(CASEOPS.tokens_per_byte, 5) == 0.31674
    assert round(CASEOPS.val_targets / CASEOPS.tokens_per_byte) == 151_074_499
    assert (SP8192.val_targets, CASEOPS.val_targets) == (40_540_160, 47_851_520)
    assert all(entry.val_documents == VAL_DOCUMENTS for entry in CATALOGUE.values())
    for entry in exports.values():  # the exact number of tokens gives the logs' number of targets
        if entry.val_tokens is not None:
            assert (entry.val_tokens - 1) // 2048 * 2048 == entry.val_targets


PUBLISHED = [
    ("sp8192", 40_540_803, 151_080_891),
    ("sp8192-caseops", 47_853_344, 151_080_000),
    ("sp1024", 62_021_846, LUT_BYTES),
    ("sp4096", 45_509_000, LUT_BYTES),
]


@pytest.mark.parametrize(("name", "tokens", "count"), PUBLISHED)
def test_the_published_splits_pass(name, tokens, count):
    check_validation(find(name), Validation(documents=50_000, tokens=tokens, bytes=count), "x")


@pytest.mark.parametrize(
    ("name", "documents", "tokens", "count", "message"),
    [
        ("sp8192-caseops", 50_000, 47_853_344, 164_594_398, r"0\.29073 targets per byte, expected 0\.31674.*PR 2071"),
        ("sp8192", 50_000, 40_540_803, 176_332_748, r"0\.22991 targets per byte"),  # issue 1719: spaces twice
        ("sp8192", 50_000, 47_853_344, 151_074_499, "47,853,344 validation tokens .* this is another tokenization"),
        ("sp8192-caseops", 10_000, 9_662_465, 32_756_252, "10,000 validation documents.*issue 2127"),
        ("sp8192-caseops", 50_000, 43_767_809, 151_074_499, "another tokenization"),
    ],
)
def test_the_mistakes_of_the_challenge_do_not(name, documents, tokens, count, message):
    with pytest.raises(InputError, match=message):
        check_validation(find(name), Validation(documents=documents, tokens=tokens, bytes=count), "x")


def test_the_tolerance_is_a_thousandth():
    assert RHO_TOLERANCE == 1e-3
    for factor, passes in ((1.0009, True), (0.9991, True), (1.0012, False), (0.9988, False)):
        found = Validation(
            documents=50_000, tokens=40_540_803, bytes=round(40_540_802 / SP8192.tokens_per_byte / factor)
        )
        if passes:
            check_validation(SP8192, found, "x")
        else:
            with pytest.raises(InputError, match="targets per byte"):
                check_validation(SP8192, found, "x")


def test_unknown_names_are_answered_with_the_closest():
    with pytest.raises(InputError, match="did you mean `sp8192-caseops`"):
        find("sp8192-caseop")
