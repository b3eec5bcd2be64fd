"""Trainings of a sweep side by side, one process per GPU."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pgolf.console import Progress
from pgolf.errors import InputError
from pgolf.sweep.rows import Row, fail, has_result, result_path
from pgolf.sweep.worker import write_job

WORKER = (sys.executable, "-m", "pgolf.sweep.worker")
POLL_SECONDS = 0.2
VISIBLE, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


@dataclass(slots=True)
class _Running:
    """A worker at work."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    rows: Sequence[Row]
    slot: int


def places(workers: int | None, gpus: int, environment: Mapping[str, str], cores: int) -> list[dict[str, str]]:
    """What each worker's environment adds: its own GPU and its share of the cores; on a CPU one worker by default.

    `gpus` is the number that this process sees. InputError where there are fewer than workers.
    """
    if gpus and workers is not None and workers > gpus:
        raise InputError(f"--workers is {workers}, but there are {gpus} GPUs: one row needs one")
    count = workers or gpus or 1
    threads = {} if count == 1 or THREADS in environment else {THREADS: str(max(1, cores // count))}
    if not gpus:
        return [threads] * count
    names = environment.get(VISIBLE) or ",".join(map(str, range(gpus)))
    return [{VISIBLE: name, **threads} for name in names.split(",")[:count]]


def run_all(
    folder: Path,
    groups: Mapping[str, Sequence[Row]],
    environments: Sequence[Mapping[str, str]],
    show: Progress,
    command: Sequence[str] = WORKER,
) -> None:
    """Run `command JOB` for every group of rows that share a training, at most one at a time per environment.

    A worker that dies without a result fails its rows and nothing else. An error or an interruption of this process
    stops all workers.
    """
    waiting = list(groups.items())
    running: list[_Running] = []
    total = sum(map(len, groups.values()))
    try:
        while waiting or running:
            while waiting and len(running) < len(environments):
                slot = min(set(range(len(environments))) - {worker.slot for worker in running})
                running.append(_start(folder, *waiting.pop(0), slot, environments[slot], command))
            time.sleep(POLL_SECONDS)
            for worker in [worker for worker in running if worker.process.poll() is not None]:
                running.remove(worker)
                _close(folder, worker)
            left = sum(len(rows) for _, rows in waiting) + sum(len(worker.rows) for worker in running)
            show(f"{total - left} of {total} rows done  " + "  |  ".join(map(_state, running)))
    finally:
        for worker in running:
            worker.process.terminate()
        for worker in running:
            worker.process.wait()
            worker.log.close()


def _start(
    folder: Path, training: str, rows: Sequence[Row], slot: int, environment: Mapping[str, str], command: Sequence[str]
) -> _Running:
    job, log = folder / "jobs" / f"{training}.json", folder / "logs" / f"{training}.log"
    for row in rows:
        result_path(folder, row.key).unlink(missing_ok=True)  # an earlier failure
    write_job(job, rows)
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("wb")
    process = subprocess.Popen(
        [*command, str(job)], stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
    )
    return _Running(process, file, rows, slot)


def _close(folder: Path, worker: _Running) -> None:
    worker.log.close()
    for row in worker.rows:
        if not has_result(folder, row):
            fail(folder, row, f"the worker ended with code {worker.process.returncode}: {_last_line(worker)}")


def _state(worker: _Running) -> str:
    return f"{worker.rows[0].cell.label}: {_last_line(worker).removeprefix('row: ')}"


def _last_line(worker: _Running) -> str:
    with open(worker.log.name, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")
