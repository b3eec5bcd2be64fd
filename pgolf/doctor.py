"""`pgolf doctor`: does this machine, this environment and this folder have what a run needs, and if not, what helps?

Every check stands alone: it imports what it needs when it runs, and whatever goes wrong in it becomes a line of the
table, so that the command works where much else does not.
"""

import contextlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from pgolf import paths
from pgolf.console import console
from pgolf.errors import InputError

State = Literal["ok", "warn", "fail"]
COLORS: dict[State, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
PYTHON = (3, 11)
INSTALL = "in the environment, `pip install -c constraints.txt -e .` (or `make setup`)"
ROOMY = 5e9
"""Bytes of free disk below which a few runs in DVC's cache may fill it."""


class Check(NamedTuple):
    """One line."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; never empty where the state is not `ok`."""


def doctor() -> None:
    """Check machine, environment and folder, with a remedy for what is not right; exit 1 where a run would fail."""
    checks = list(examine())
    grid = Table(title="doctor", title_justify="left", title_style="bold")
    for column in ("", "check", "found", "remedy"):
        grid.add_column(column, overflow="fold")
    for check in checks:
        texts = (check.name, check.found, check.remedy)
        grid.add_row(Text(check.state, COLORS[check.state]), *(Text(" ".join(text.split())) for text in texts))
    console.print(grid)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def examine() -> Iterator[Check]:
    """Every check, in the working folder; none raises."""
    for name, look in CHECKS.items():
        try:
            yield look()
        except InputError as error:
            yield Check(name, "fail", *_problem_and_remedy(str(error)))
        except Exception as error:  # a broken environment fails in every way there is
            yield Check(name, "fail", f"{type(error).__name__}: {error}", INSTALL)


def _problem_and_remedy(message: str) -> tuple[str, str]:
    """A message says what is wrong, then `: ` or `; `, then what helps."""
    for mark in (": ", "; "):
        problem, found, remedy = message.rpartition(mark)
        if found:
            return problem, remedy
    return message, message


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """The interpreter's version."""
    found = ".".join(map(str, version))
    if version < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        return Check(
            "Python", "fail", found, f"install Python {wanted} or later, then `make setup PYTHON=python{wanted}`"
        )
    return Check("Python", "ok", found)


def packages() -> Check:
    """What pyproject.toml asks for, with versions."""
    try:
        wanted = importlib.metadata.requires("pgolf") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", "fail", "pgolf is not installed", INSTALL)
    needed = [line for line in wanted if ";" not in line]
    if wrong := [problem for line in needed if (problem := _unmet(line))]:
        return Check("packages", "fail", ", ".join(wrong), INSTALL)
    return Check("packages", "ok", f"{len(needed)} of {len(needed)}")


def _unmet(requirement: str) -> str:
    """What is wrong with one requirement such as `dvc>=3.67,<4`; empty where nothing is."""
    match = re.match(r"([\w.-]+)(.*)", requirement.replace(" ", ""))
    assert match
    name, limits = match[1], [limit for limit in match[2].split(",") if limit]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    for limit in limits:
        if not _keeps(version, limit):
            return f"{name} is {version}, needed is {limit}"
    return ""


def _keeps(version: str, limit: str) -> bool:
    """Whether a version keeps one limit, such as `>=3.67`; suffixes of pre-releases and builds do not count."""
    mark, bound = re.findall(r"[<>=!~]+|[\w.*+]+", limit)
    have, want = _numbers(version), _numbers(bound)
    fixed = bound.count(".")  # numbers that `~=1.2` and `==1.*` fix: all but the last
    same = have[:fixed] == want[:fixed]
    equal = same if "*" in bound else have == want
    return {
        ">=": have >= want, "<=": have <= want, ">": have > want, "<": have < want,
        "==": equal, "!=": not equal, "~=": same and have >= want,
    }[mark]  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0, 0, 0, 0)."""
    numbers = [int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version)[0])]
    return tuple(numbers + [0] * (6 - len(numbers)))


def torch_build() -> Check:
    """Whether torch can be imported."""
    import torch

    return Check("torch", "ok", f"{torch.__version__}, threads: {torch.get_num_threads()}")


def cuda() -> Check:
    """The GPU, or why there is none."""
    import torch

    if torch.cuda.is_available():
        count, memory = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
        return Check("CUDA", "ok", f"{count}x {torch.cuda.get_device_name(0)}, {memory / 1e9:.0f} GB each")
    if torch.version.cuda is not None:
        remedy = "`nvidia-smi` must list the GPU: install or update its driver; without a GPU this is fine"
        return Check("CUDA", "warn", f"torch is built for CUDA {torch.version.cuda}, but no GPU answers", remedy)
    if shutil.which("nvidia-smi"):
        remedy = "install torch's CUDA build (pytorch.org, Get Started)"
        return Check("CUDA", "warn", "there is an NVIDIA driver, but torch is the CPU build", remedy)
    return Check("CUDA", "ok", "no GPU: the bundled run needs none")


def attention() -> Check:
    """Attention back ends, best first."""
    import torch

    from pgolf.device import pick_device
    from pgolf.model.attention import present

    device, dtype = pick_device()
    found = present(device, dtype, 64)
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9 and not {"fa4", "fa3"} & set(found):
        return Check("attention", "warn", ", ".join(found), "for 1.6 times the speed `pip install --pre -e '.[fa4]'`")
    return Check("attention", "ok", ", ".join(found))


def codecs() -> Check:
    """Every compressor packs and unpacks a few bytes."""
    from pgolf.codec.backends import compress, decompress

    sample = bytes(range(256)) * 8
    for codec in ("brotli", "zstd", "lzma"):
        if decompress(codec, compress(codec, sample), len(sample)) != sample:
            return Check("codecs", "fail", f"{codec} does not give back what it packed", INSTALL)
    return Check("codecs", "ok", "brotli, zstd, lzma")


def disk() -> Check:
    """Free space here, against what a run of these parameters may need."""
    from pgolf.plan import make_plan
    from pgolf.preflight import BYTES_PER_PARAMETER
    from pgolf.sections import load_sections

    free, need = shutil.disk_usage(Path.cwd()).free, 0
    with contextlib.suppress(InputError):  # wrong parameters have a line of their own
        sections = load_sections(paths.PARAMS)
        need = make_plan(sections, sections.tokenize.vocab_size, None).parameters * BYTES_PER_PARAMETER
    found = f"{free / 1e9:.1f} GB free, a run may need {need / 1e9:.1f} GB"
    if free < need:
        return Check("disk", "fail", found, "free some, or work in a folder on another disk")
    if free < ROOMY:
        return Check("disk", "warn", found, "`dvc gc --workspace` drops the artifacts of earlier runs")
    return Check("disk", "ok", found)


def parameters() -> Check:
    """params.yaml as a whole."""
    from pgolf.sections import load_sections

    load_sections(paths.PARAMS)
    return Check("params.yaml", "ok", "every key is known, every value has its type")


def documents() -> Check:
    """The files that `data` names; of a fetched export, its manifest and the sizes of what that lists."""
    from pgolf.data.config import DataConfig
    from pgolf.data.published import again, open_published
    from pgolf.params import section

    config = section(paths.PARAMS, "data", DataConfig)
    if config.published is not None:
        export = open_published(config.published)
        for name, entry in export.files.items():
            path = export.folder / name
            if not path.is_file() or path.stat().st_size != entry["size"]:
                remedy = again(export.name, export.folder)
                return Check("data", "fail", f"{path} is missing or not what was fetched", remedy)
        return Check("data", "ok", f"{export.name}: {len(export.files)} files of {export.repo}")
    for key, name in (("train", config.train), ("val", config.val)):
        if not Path(name).is_file():
            return Check("data", "fail", f"{name} is missing", f"set `data.{key}` to a file of documents that exists")
    return Check("data", "ok", f"{config.train}, {config.val}")


def tokens() -> Check:
    """The manifest of the tokens, and that shards, sidecar and tokenizer are those that it names."""
    from pgolf.data.tokens import MANIFEST, open_tokens

    if not (paths.TOKENS / MANIFEST).exists():
        return Check("tokens", "warn", "none yet", "`dvc repro`, or `pgolf tokenize`")
    found = open_tokens(paths.TOKENS, paths.TOKENIZER)
    return Check("tokens", "ok", f"{found.train_tokens:,} for training, {len(found.val):,} for validation")


def dvc_state() -> Check:
    """Whether there is a repository with a lock file, and which stages it would run again."""
    from pgolf.params import read_params

    if not Path(".dvc").is_dir():
        return Check("DVC", "warn", "no .dvc here", "work in a clone; `pgolf run` does without DVC")
    lock = Path("dvc.lock")
    if not lock.exists():
        return Check("DVC", "warn", "no dvc.lock: nothing was run yet", "`make repro`")
    try:
        stages = read_params(lock)["stages"]
    except (InputError, KeyError) as error:
        return Check("DVC", "fail", f"dvc.lock is damaged ({error})", "`git checkout dvc.lock`, then `dvc repro`")
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Check("DVC", "fail", f"`dvc status` fails: {reason}", "`dvc doctor` says what DVC itself misses")
    if changed := sorted(json.loads(done.stdout)):
        return Check("DVC", "warn", f"changed since the last run: {', '.join(changed)}", "`dvc repro`")
    return Check("DVC", "ok", f"{len(stages)} stages, nothing changed")


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": python,
    "packages": packages,
    "torch": torch_build,
    "CUDA": cuda,
    "attention": attention,
    "codecs": codecs,
    "params.yaml": parameters,
    "disk": disk,
    "data": documents,
    "tokens": tokens,
    "DVC": dvc_state,
}
"""Name -> check, from what everything needs to what a run left behind."""
