"""`pgolf audit` on a finished run: nothing fails, and each tampering is found by its check."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import call

from pgolf.audit.run import audit_artifact, audit_run
from pgolf.rules import load_rules

RULES = load_rules()
PARAMS = Path("params.yaml")


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
