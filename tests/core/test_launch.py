"""Several processes of one stage: started together, ended together, and only one of them speaks."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pgolf import launch, ranks
from pgolf.errors import InputError
from pgolf.launch import on_all_gpus, run_together

ERRORS = """
import os, time
from pgolf.console import console, handled
from pgolf.errors import InputError
RANK = os.environ["RANK"]
@handled
def train():
    console.print("hello")
    if RANK in {failing!r}:
        raise {error}("this one is " + RANK)
    time.sleep(60)
try:
    train()
except BaseException as left:  # typer's
    raise SystemExit(left.exit_code)
"""


def python(code: str, count: int) -> int:
    return run_together([sys.executable, "-c", code], count)


def test_every_process_learns_its_place(tmp_path: Path) -> None:
    folder = str(tmp_path)
    code = f"import json, os; json.dump(dict(os.environ), open({folder!r} + '/' + os.environ['RANK'], 'w'))"
    assert python(code, 3) == 0
    seen = [json.loads(path.read_text()) for path in sorted(tmp_path.iterdir())]
    assert [(each["RANK"], each["LOCAL_RANK"], each["WORLD_SIZE"]) for each in seen] == [(r, r, "3") for r in "012"]
    assert len({(each["MASTER_ADDR"], each["MASTER_PORT"]) for each in seen}) == 1


def test_the_first_failure_ends_all_and_gives_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 1.0)
    code = "import os, signal, sys, time; r = os.environ['RANK']\n"
    code += "if r == '0': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as one that waits for a GPU
    code += "if r == '1': sys.exit(7)\n"
    started = time.monotonic()
    assert python(code + "time.sleep(60)", 3) == 7
    assert time.monotonic() - started < 20


def test_every_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"the 2 GPUs here: set --nproc-per-node to 2"):
        ranks.start()


@pytest.mark.parametrize(("failing", "said", "error"), [("1", "1", "InputError"), ("01", "0", "RuntimeError")])
def test_an_error_is_said_once_by_the_process_that_has_it(failing: str, said: str, error: str) -> None:
    code = ERRORS.format(failing=set(failing), error=error)
    call = f"import sys; from pgolf.launch import *; sys.exit(run_together([sys.executable, '-c', {code!r}], 2))"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (2 if error == "InputError" else 3)
    assert done.stderr.count("hello") == 1
    assert done.stderr.count("this one is") == 1
    assert f"rror: this one is {said}" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "shares", "count"), [(0, 8, 1), (1, 8, 1), (2, 8, 2), (6, 8, 4), (8, 2, 2), (4, 1, 1), (3, 0, 3)]
)
def test_a_stage_takes_the_gpus_that_it_can_share_out(
    monkeypatch: pytest.MonkeyPatch, gpus: int, shares: int, count: int
) -> None:
    started = []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "run_together", lambda command, n: started.append((command[1:], n)) or 0)
    assert on_all_gpus("train", Path("p.yaml"), shares) == (count > 1)
    assert started == ([(["-m", "stages.train", "--params", "p.yaml"], count)] if count > 1 else [])
    monkeypatch.setenv("RANK", "0")
    assert not on_all_gpus("train", Path("p.yaml"), shares), "one of the processes starts no more"


def test_a_failure_of_the_processes_is_one_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(launch, "run_together", lambda command, n: 2)
    with pytest.raises(SystemExit) as left:
        on_all_gpus("train", Path("p.yaml"))
    assert left.value.code == 2
