"""Test-time training through the stage: what it reports, what it logs, and that the packed program carries it."""

import json
from pathlib import Path

import pytest
import safetensors.torch
from conftest import call

from pgolf.submit.pack_code import unpack_code


def test_the_stage_reports_gain_and_log_and_the_packed_program_carries_it(workspace: Path, mini_run: Path) -> None:
    params = workspace / "params.yaml"
    text = params.read_text()
    for key, before, after in (
        ("ttt", "none", "chunk"),
        ("chunk_tokens", "32768", "1024"),
        ("max_train_chunks", "null", "3"),
    ):
        assert f"{key}: {before}" in text
        text = text.replace(f"{key}: {before}", f"{key}: {after}")
    params.write_text(text)
    for stage in ("evaluate", "verify_size"):
        call("python", "-m", f"stages.{stage}", cwd=workspace)
    without, found = (json.loads((folder / "metrics/evaluate.json").read_text()) for folder in (mini_run, workspace))
    assert without["ttt_gain_bpb"] == without["update_steps"] == 0
    assert found["ttt_gain_bpb"] == pytest.approx(without["val_bpb"] - found["val_bpb"], abs=1e-7)
    assert found["ttt_gain_bpb"] != 0
    assert found["quantized_bpb"] == without["quantized_bpb"]
    tensors = safetensors.torch.load_file(workspace / "artifacts/evaluate/losses.safetensors")
    scored, first, end, steps = tensors["updates"].long().T
    assert (end <= scored).all()
    assert (first < end).all()
    assert int(steps.sum()) == found["update_steps"] == 9
    assert len(tensors["losses"]) == found["scored_tokens"] == without["scored_tokens"]
    programs = [
        unpack_code((folder / "artifacts/verify/train_gpt.py").read_bytes())[0] for folder in (mini_run, workspace)
    ]
    used = ".max_train_chunks"  # only chunk TTT reads it, so only a program that carries it has this
    assert [used in program for program in programs] == [False, True]
