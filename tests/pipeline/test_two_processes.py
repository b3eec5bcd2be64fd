"""The stage `train` as two processes: one run, one set of files, one voice."""

import json
from pathlib import Path

import torch
from conftest import call
from safetensors.torch import load_file

TWICE = """
import sys
from pgolf.launch import run_together
sys.exit(run_together([sys.executable, "-m", "stages.train"], 2))
"""


def test_two_processes_write_what_one_writes(workspace: Path) -> None:
    weights, metrics = workspace / "artifacts/train/model.safetensors", workspace / "metrics/train.json"
    before, alone = load_file(weights), json.loads(metrics.read_text())
    weights.unlink()
    printed = call("python", "-c", TWICE, cwd=workspace)
    assert printed.count("train: done") == printed.count("attention by") == 1
    after, together = load_file(weights), json.loads(metrics.read_text())
    assert (alone["world_size"], together["world_size"]) == (1, 2)
    assert together["hardware"].startswith("2x ")
    assert (together["steps"], together["tokens"]) == (alone["steps"], alone["tokens"])
    assert abs(together["train_loss"] - alone["train_loss"]) < 1e-3
    assert all(torch.allclose(after[name], value, atol=1e-3) for name, value in before.items())
    assert not list((workspace / "scratch").glob("train-*"))
