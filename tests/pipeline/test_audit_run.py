"""`pgolf audit` on a finished run: nothing fails, and each tampering is found by its check."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import call

from pgolf import artifacts, paths
from pgolf.audit.files import check_files
from pgolf.audit.folder import read_folder
from pgolf.audit.foreign import audit_folder
from pgolf.audit.run import audit_artifact, audit_run
from pgolf.rules import load_rules
from pgolf.runs import Run, load_run
from pgolf.submit.claims import About
from pgolf.submit.leaderboard import RECORDS
from pgolf.submit.pack_code import ENTRY, optional_modules, pack_code, unpack_code
from pgolf.submit.record import SUMS, checksums, record

ROOT = Path(__file__).parents[2]
RULES = load_rules()
PARAMS = Path("params.yaml")
ABOUT = About(
    author="A. Person", github_id="person", name="Small", blurb="Short.", date="2026-04-30",
    track="track_non_record_16mb",
)  # fmt: skip
FILES = ("model_seed42.pgolf", "tokenizer.model", "train_seed42.log", "submission.json", "train_gpt.py", "README.md")


def metric(stage: str, **changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"metrics/{stage}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def losses(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Replace saved tensors, and keep what the file says of itself."""

    def change(folder: Path) -> None:
        path = folder / "artifacts/evaluate/losses.safetensors"
        with safetensors.safe_open(path, framework="pt") as file:
            meta = file.metadata()
        tensors = safetensors.torch.load_file(path)
        tensors |= {name: edit(tensors[name]).contiguous() for name, edit in changes.items()}
        safetensors.torch.save_file(tensors, path, metadata=meta)

    return change


def better_prefix(values: torch.Tensor) -> torch.Tensor:
    values = values.clone()
    values[:20] -= 0.1
    return values


TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "edited score": (metric("evaluate", val_bpb=1.0), "score.sum"),
    "edited bytes": (metric("verify-size", bytes_model=1), "size.sum"),
    "clock overrun": (
        lambda folder: [
            metric(stage, hardware=RULES.reference_hardware.value, **{f"{stage}_seconds": 400.0})(folder)
            for stage in ("train", "calibrate")
        ],
        "clock.train",
    ),
    "subset scored": (metric("evaluate", scored_tokens=500), "tokens.val"),
    "other losses": (losses(losses=better_prefix), "c2.charged"),
    "losses missing": (losses(losses=lambda t: t[:-1]), "c4.score_counts"),
    "training ahead": (losses(updates=lambda t: torch.tensor([[0, 0, 64, 1]], dtype=torch.int32)), "c3.intervals"),
    "another artifact": (
        lambda folder: (folder / "artifacts/tokens/manifest.json").write_text(
            (folder / "artifacts/tokens/manifest.json").read_text() + "\n"
        ),
        "score.inputs",
    ),
}  # fmt: skip


def test_a_finished_run_has_no_fail(mini_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mini_run)
    found = audit_run(PARAMS, RULES)
    assert not found.failed, [f for f in found.findings if f.verdict == "fail"]
    unclear = {f.check for f in found.findings if f.verdict == "cannot tell"}
    assert unclear <= {"bytes.rho", "clock.train", "clock.evaluate", "size.code"}
    alone = audit_artifact(mini_run / "artifacts/compress/model.pgolf", RULES)
    assert {f.verdict for f in alone.findings} == {"pass"}


def test_every_tampering_is_found_by_its_check(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, because an audit takes seconds: each is seen by another check, and no further check fails."""
    for tamper, _ in TAMPERED.values():
        tamper(workspace)
    monkeypatch.chdir(workspace)
    found = audit_run(PARAMS, RULES)
    assert {f.check for f in found.findings if f.verdict == "fail"} == {check for _, check in TAMPERED.values()}


def test_a_tampered_sidecar_ends_the_audit(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workspace / "artifacts/tokens/fineweb_val_bytes_000000.bin"
    data = bytearray(path.read_bytes())
    data[-2] += 1
    path.write_bytes(data)
    monkeypatch.chdir(workspace)
    (only,) = audit_run(PARAMS, RULES).findings
    assert (only.check, only.verdict) == ("tokens.files", "fail")


@pytest.mark.slow
def test_a_run_with_adaptation_is_audited_by_the_command(workspace: Path) -> None:
    params = workspace / "params.yaml"
    text = params.read_text()
    for key, before, after in (
        ("ttt", "none", "chunk"), ("chunk_tokens", "32768", "1024"), ("max_train_chunks", "null", "3")
    ):  # fmt: skip
        assert f"{key}: {before}" in text
        text = text.replace(f"{key}: {before}", f"{key}: {after}")
    params.write_text(text)
    for stage in ("evaluate", "verify_size"):
        call("python", "-m", f"stages.{stage}", cwd=workspace)
    printed = call("pgolf", "audit", cwd=workspace)
    found = json.loads((workspace / "scratch/audit.json").read_text())
    verdicts = {f["check"]: f["verdict"] for f in found["findings"]}
    assert verdicts["c3.zero_rate"] == verdicts["c3.intervals"] == verdicts["c1.future_tokens"] == "pass", printed


def other_seed(run: Run, folder: Path, seed: int) -> Run:
    """The same run as if another seed had made it."""
    _, params = unpack_code(run.files[paths.PACKED_CODE].read_bytes())
    params["train"]["seed"] = seed
    code = folder / f"code{seed}.py"
    artifacts.write_bytes(code, pack_code(ENTRY, ROOT, params, exclude=optional_modules(params)).source)
    shift = seed / 1e6
    scores = {key: run.metrics["evaluate"][key] * (1 + shift) for key in ("val_bpb", "val_loss")}
    metrics = {**run.metrics, "evaluate": {**run.metrics["evaluate"], **scores}}
    params_flat = {**run.params, "train.seed": seed}
    files = {**run.files, paths.PACKED_CODE: code}
    return replace(run, name=f"seed {seed}", params=params_flat, metrics=metrics, files=files)


@pytest.fixture(scope="module")
def recorded(mini_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pgolf record` writes from one run."""
    out = tmp_path_factory.mktemp("recorded") / "small"
    record(out, [load_run(str(mini_run))], ABOUT, RECORDS["PR1855"], RULES)
    return out


def verdicts(folder: Path) -> dict[str, set[str]]:
    """Verdict -> the checks that have it."""
    found: dict[str, set[str]] = {"pass": set(), "fail": set(), "cannot tell": set()}
    for finding in audit_folder(folder, RULES).findings:
        found[finding.verdict].add(finding.check)
    return found


OPEN = {
    "bytes.rho", "tokens.val", "tokens.documents", "clock.train", "clock.evaluate", "submission.compliance",
    "seeds.count", "seeds.significance",
}  # fmt: skip
"""What the folder of a small run on a CPU says of itself: another text, another machine, no record."""


def test_a_recorded_folder_passes(recorded: Path) -> None:
    found = verdicts(recorded)
    assert found["fail"] == set()
    assert found["cannot tell"] <= OPEN
    assert found["pass"] >= {"files.sums", "size.model", "size.code", "submission.logs", "log.keys", "tokenizer.pieces"}


def test_a_recorded_folder_of_three_seeds_passes(mini_run: Path, tmp_path: Path) -> None:
    first = load_run(str(mini_run))
    runs = [first, *(other_seed(first, tmp_path, seed) for seed in (7, 314))]
    record(tmp_path / "out", runs, ABOUT, RECORDS["PR1855"], RULES)
    found = verdicts(tmp_path / "out")
    assert found["fail"] == set()
    assert found["cannot tell"] <= OPEN - {"seeds.count"}
    assert found["pass"] >= {"seeds.config", "seeds.code", "seeds.count", "submission.means"}


def sums(folder: Path) -> str | None:
    found = read_folder(folder)
    return next((f.verdict for f in check_files(found, []) if f.check == "files.sums"), None)


@pytest.fixture
def copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_of_a_recorded_folder_is_found(copy: Path, name: str) -> None:
    path, generator = copy / name, random.Random(name)
    before = path.read_bytes()
    for place in (0, len(before) - 1, *(generator.randrange(len(before)) for _ in range(3))):
        changed = bytes([before[place] ^ generator.randrange(1, 256)])
        path.write_bytes(before[:place] + changed + before[place + 1 :])
        assert sums(copy) == "fail", place
    path.write_bytes(before)
    assert sums(copy) == "pass"


def test_a_file_more_or_less_in_a_recorded_folder_is_found(copy: Path) -> None:
    more = copy / "source/pgolf/more.py"
    more.write_text("")
    assert sums(copy) == "fail"
    more.unlink()
    for name in ("tokenizer.model", SUMS):
        kept = (copy / name).read_bytes()
        (copy / name).unlink()
        assert sums(copy) == "fail", name
        (copy / name).write_bytes(kept)
    assert sums(copy) == "pass"


FORGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "submission.json": (lambda data: data.replace(b'"bytes_code": ', b'"bytes_code": 1', 1), "submission.derived"),
    "model_seed42.pgolf": (lambda data: data[:-1], "size.model"),
    "train_gpt.py": (lambda data: data + b"#\n", "size.code"),
    "train_seed42.log": (lambda data: data.replace(b"val_loss:", b"val_loss:1"), "submission.logs"),
}


def test_new_checksums_do_not_hide_changes(copy: Path) -> None:
    """All at once, because an audit takes seconds: each is seen by another check."""
    for name, (change, _) in FORGED.items():
        data = (copy / name).read_bytes()
        assert change(data) != data
        (copy / name).write_bytes(change(data))
    (copy / SUMS).write_text(checksums(copy))
    found = verdicts(copy)
    assert found["fail"] >= {check for _, check in FORGED.values()}
    assert "files.sums" in found["pass"]
