"""Hostile folders: handled within seconds, nothing run, unpickled, followed or expanded without bound."""

import base64
import lzma
import os
import pickle
import shutil
import stat
import time
import zipfile
from pathlib import Path

import pytest
from submissions import Submission

from pgolf.audit.files import SUMMED_BYTES
from pgolf.audit.foreign import audit_folder
from pgolf.audit.logs import LINE_CHARS, LINES, LOG_BYTES, read_log
from pgolf.audit.programs import UNPACKED_BYTES, programs
from pgolf.errors import InputError
from pgolf.rules import load_rules

RULES = load_rules()
SECONDS = 10
HUGE = 10**400


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Submission.clean().write(tmp_path / "x")


def timed(folder: Path):
    start, busy = time.monotonic(), time.process_time()
    found = audit_folder(folder, RULES)
    assert time.process_time() - busy < SECONDS
    assert time.monotonic() - start < 6 * SECONDS, "it waits for something, or the machine is very busy"
    return found


def evidence(found, check: str) -> str:
    return next(f.evidence for f in found.findings if f.check == check)


def test_links_pickles_and_archives_are_named_and_left_alone(folder: Path, tmp_path: Path) -> None:
    proof, secret = tmp_path / "ran", tmp_path / "secret.log"
    secret.write_text("train_shards: 1499\n")
    (folder / "model.pkl").write_bytes(pickle.dumps(Bomb(proof)))
    (folder / "linked.log").symlink_to(secret)
    (folder / "loop").symlink_to(folder)
    (folder / "helper.py").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.log")
    with zipfile.ZipFile(folder / "deep.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_gpt.py", b"\0" * 10**7)
    found = timed(folder)
    assert not proof.exists()
    assert found.verdict("files.closed") == "cannot tell"
    for name in ("model.pkl (pickle)", "linked.log (link)", "loop (link)", "pipe.log (special)", "deep.zip (archive)"):
        assert name in evidence(found, "files.closed")
    assert found.verdict("leak.shards") == "pass", "the linked log was read"


def test_required_files_that_never_end_are_not_opened(folder: Path) -> None:
    """Reading a pipe waits for ever, a device never ends; as root the device is a real one."""
    for name in ("submission.json", "train_gpt.py", "README.md", "SHA256SUMS", "tok.model", "train_seed42.log"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    try:
        os.mknod(folder / "zero.log", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        (folder / "zero.log").symlink_to("/dev/zero")
    found = timed(folder)
    assert "zero.log" in evidence(found, "files.closed")
    assert found.verdict("files.required") == found.verdict("submission.fields") == "fail"


def test_checksums_of_a_folder_without_end_are_left_open(folder: Path) -> None:
    with (folder / "model.bin").open("wb") as file:
        file.truncate(SUMMED_BYTES + 1)  # a hole: it takes no room
    (folder / "SHA256SUMS").write_text("x\n")
    assert timed(folder).verdict("files.sums") == "cannot tell"


@pytest.mark.parametrize(
    "data",
    [b"\n" + b"\xff" * 50, b"\n\x7f", b"\0" * 10**6, pickle.dumps({1: 2}), b"", os.urandom(999), b"\n\x05" * 10**5],
    ids=["varint", "cut", "zeros", "pickle", "empty", "noise", "many"],
)
def test_a_tokenizer_that_is_none_is_left_open(folder: Path, data: bytes) -> None:
    (folder / "tok.model").write_bytes(data)
    assert timed(folder).verdict("tokenizer.pieces") == "cannot tell"


@pytest.mark.slow
def test_a_hundred_thousand_files_end(folder: Path) -> None:
    (folder / "many").mkdir()
    (folder / "many/x").touch()
    for index in range(100_000):
        os.link(folder / "many/x", folder / f"many/{index}")
        if index % 50_000 == 0:  # a file has only so many names on some systems
            (folder / "many/x").unlink()
            (folder / "many/x").touch()
    assert "more entries than were listed" in evidence(timed(folder), "files.closed")
    shutil.rmtree(folder / "many")


def test_submission_files_that_are_links_count_as_missing(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere.json"
    (folder / "submission.json").rename(real)
    (folder / "submission.json").symlink_to(real)
    assert timed(folder).verdict("submission.fields") == "fail"


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, "{" + '"a":{' * 100_000,
     '{"val_bpb": ' + "9" * 50_000 + "}", '{"val_bpb": NaN}', "[]", "", "\0\xff",
     '{"a": 1, "a": 2}', '"' + "x" * 3_000_000],
    ids=["deep list", "deep object", "long number", "nan", "list", "empty", "bytes", "twice", "too large"],
)  # fmt: skip
def test_every_broken_submission_json_is_one_finding(folder: Path, text: str) -> None:
    (folder / "submission.json").write_text(text, "utf-8")
    assert timed(folder).verdict("submission.fields") == "fail"


@pytest.mark.parametrize(
    "claims",
    [{"seeds": 3, "seed_results": []}, {"seeds": [None], "seed_results": {"42": None, "x" * 10**5: {"val_loss": "a"}}},
     {"val_bpb": "1.06", "val_loss": [], "compliance": [], "seed_results_all_runs_disclosure": 7, "bytes_total": {}},
     {"val_bpb": HUGE, "val_loss_std": HUGE, "bytes_total": HUGE, "train_steps_mean": HUGE, "date": HUGE, "track": HUGE,
      "comparison_baseline_bpb": HUGE, "seeds": [HUGE],
      "seed_results": {"42": dict.fromkeys(["val_bpb", "val_loss", "artifact_bytes", "steps", "step_avg_ms"], HUGE)}},
     {"val_bpb": 1e400, "seed_results": {"42": {"val_bpb": True, "val_loss": -1, "artifact_bytes": "many"}}}],
    ids=["lists", "nulls", "types", "huge", "infinite"],
)  # fmt: skip
def test_claims_of_any_type_are_judged(folder: Path, claims: dict) -> None:
    made = Submission.clean()
    made.claims.update(claims)
    made.write(folder)
    (folder / "submission.json").write_text((folder / "submission.json").read_text().replace("Infinity", "1e400"))
    assert timed(folder).failed


@pytest.mark.parametrize(
    "text",
    ["(" * 100_000, "a" + "+a" * 200_000, "x = " + "-" * 100_000 + "1", "\0", "if 1:\n" + " " * 10**6, "é" * 100_000,
     "f(" + "[" * 90 + "]" * 90 + ")", 'x = b"' + "A" * 1_000_000 + '"', "a" + ".b" * 50_000],
    ids=["open", "sum", "minus", "zero", "blank", "letters", "nested", "constant", "chain"],
)  # fmt: skip
def test_every_broken_program_is_one_finding(folder: Path, text: str) -> None:
    (folder / "train_gpt.py").write_text(text, "utf-8")
    assert timed(folder).verdict("size.code") == "fail"


def test_long_lines_and_long_logs_are_cut(folder: Path) -> None:
    lines = ["ttt_sliding:done " + "val_loss=1 " * 400_000, "a" * 10**6, *["ngram" * 400] * 500]
    with (folder / "train_seed42.log").open("a") as file:
        file.write("\n".join(lines) + "\n" + "x" * LOG_BYTES)
    log = read_log(folder / "train_seed42.log")
    assert log.cut
    assert not log.whole
    assert log.final is not None
    found = timed(folder)
    assert "train_seed42.log (cut lines or damaged text)" in evidence(found, "files.closed")


def test_a_log_of_many_short_lines_ends(folder: Path) -> None:
    (folder / "train_seed42.log").write_text("".join(f"x{i} val_loss:1.{i} val_bpb:1.{i}\n" for i in range(LINES + 9)))
    assert not read_log(folder / "train_seed42.log").whole
    assert "train_seed42.log (cut lines" in evidence(timed(folder), "files.closed")


def test_lines_at_the_limit_are_not_split_in_two(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for length in (LINE_CHARS - 1, LINE_CHARS, LINE_CHARS + 1):
        path.write_text("x" * length + "\ntrain_shards: 80\nval_tokens: 5")
        log = read_log(path)
        assert (log.lines, log.train_shards, log.val_tokens) == (3, 80, 5)
        assert log.cut == (length >= LINE_CHARS + 1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_logs(tmp_path: Path, encoding: str) -> None:
    lines = Submission.clean().logs["train_seed42.log"]
    path = tmp_path / "a.log"
    path.write_text("\n".join(lines), encoding, newline="\r\n")
    log = read_log(path)
    if encoding == "utf-16-le":  # without a mark nothing can be read, and nothing breaks
        assert log.final is None
    else:
        assert log.final is not None
        assert (log.seed, log.val_tokens, log.final.bpb) == (42, 47_851_520, 1.05989454)


def test_damaged_bytes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff\xfe\x00"[1:] + b"\x80\x81\ntrain_shards: 80\n" + bytes(range(256)))
    log = read_log(path)
    assert log.damaged
    assert log.train_shards == 80


def test_many_files_and_deep_folders_end(folder: Path) -> None:
    for index in range(2_100):
        (folder / f"f{index}.txt").touch()
    deep = folder
    for _ in range(30):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x").touch()
    for index in range(30):
        (folder / f"a{index}.log").write_text("step:1/2 x train_time:1ms\n")
    found = timed(folder)
    assert "more entries than were listed" in evidence(found, "files.closed")


def test_a_decompression_bomb_is_cut(tmp_path: Path) -> None:
    blob = base64.b85encode(lzma.compress(b"x = 1\n" * 9 + b"#" * 2_000_000, preset=1)).decode()
    start = time.monotonic()
    found = programs({"train_gpt.py": f'exec(lzma.decompress(base64.b85decode("{blob}")))'})
    assert len(found) == 2
    assert "x = 1" in found[1].text
    assert len(found[1].text) <= UNPACKED_BYTES
    assert time.monotonic() - start < SECONDS


def test_names_without_an_encoding_are_listed(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.log"))).write_text("x")
    assert timed(folder).findings


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        audit_folder(tmp_path / "nothing", RULES)
    empty = tmp_path / "empty"
    empty.mkdir()
    found = timed(empty)
    assert found.verdict("files.required") == found.verdict("log.complete") == "fail"


def test_random_bytes_everywhere(tmp_path: Path) -> None:
    noise = os.urandom(200_000)
    for name in ("README.md", "submission.json", "train_gpt.py", "train_seed1.log", "x.bin"):
        (tmp_path / name).write_bytes(noise)
    assert timed(tmp_path).failed
