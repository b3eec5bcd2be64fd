"""A stage on all visible GPUs: one process for each, as torchrun would start them, so that `dvc repro` needs no other
command on a machine with several. CUDA_VISIBLE_DEVICES says which GPUs may be used; with one or none nothing changes.

The processes read the same files as this one, which only waits. When one of them fails, the others are ended.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

GRACE = 20.0
"""Seconds between asking a process to end and ending it."""


def on_all_gpus(stage: str, params: Path, shares: int = 0) -> bool:
    """Run a stage once per GPU and wait; False where this process is to run it itself.

    The number of processes must divide `shares`; 0: any may. A failure ends this process with the same exit code.
    """
    import torch

    count = max((n for n in range(1, torch.cuda.device_count() + 1) if shares % n == 0), default=1)
    if count == 1 or "RANK" in os.environ:  # torchrun, or this function, has started several
        return False
    if code := run_together([sys.executable, "-m", f"stages.{stage}", "--params", str(params)], count):
        raise SystemExit(code)
    return True


def run_together(command: Sequence[str], count: int) -> int:
    """Start a command `count` times with the environment of torchrun; 0, or the exit code of the first that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    meeting = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = {"TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}  # no advice at the end of a process
    shared = os.environ | meeting | quiet | {"OMP_NUM_THREADS": threads}
    started = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    try:
        return _first_failure(started)
    except KeyboardInterrupt:  # the first process says so
        return 2
    finally:
        _end(started)


def _first_failure(started: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in started]
        if failed := [code for code in codes if code]:
            return max(failed[0], 3) if failed[0] < 0 else failed[0]
        if None not in codes:
            return 0
        time.sleep(0.1)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask every process that still runs to clean up and end, and end it where it does not."""
    for process in started:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in started:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
