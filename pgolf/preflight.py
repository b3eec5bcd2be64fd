"""Before the training clock starts: does every later stage have what it needs? A missing package found ten minutes
later, or a full disk, costs a run. Nothing here can affect a byte of an artifact.
"""

import importlib.metadata
import importlib.util
import platform
import shutil
import warnings
from pathlib import Path

import torch

from pgolf.errors import InputError
from pgolf.plan import Plan, make_plan
from pgolf.sections import Sections, load_sections

PACKAGE_OF_CODEC = {"zstd": "zstandard", "lzma": "lzma"}
"""All others need brotli."""
BYTES_PER_PARAMETER = 64
"""Disk for one run, generously: weights, average, optimizer state, Hessians, codes."""
QAT_WITH_GPTQ = (
    "`train.qat` shapes the weights for rounding to the nearest code, but `quantize` compensates errors with full "
    "GPTQ: together they cost 0.16 BPB in PR 635; set `qat.below` and `qat.last` to 0"
)


def preflight(params: Path, vocab_size: int, tokens_per_second: float | None = None) -> Plan:
    """Check all sections, packages and disk; returns the plan (see `make_plan`).

    InputError names what is missing and the remedy.
    """
    sections = load_sections(params)
    _packages(sections)
    if sections.train.qat.enabled and sections.quantize.method == "gptq":
        warnings.warn(QAT_WITH_GPTQ, stacklevel=2)
    plan = make_plan(sections, vocab_size, tokens_per_second)
    need, free = plan.parameters * BYTES_PER_PARAMETER, shutil.disk_usage(Path.cwd()).free
    if free < need:
        raise InputError(f"{free / 1e9:.1f} GB of disk are free here; a run of this size may need {need / 1e9:.1f} GB")
    return plan


def versions() -> dict[str, str]:
    """What a run was made with, for its metrics: Python, torch, CUDA and flash-attn, "none" where it is not there."""
    flash = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("flash-attn-4", "flash-attn-3", "flash-attn")
        if any(importlib.metadata.distributions(name=name))
    ]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "flash_attn": ", ".join(flash) or "none",
    }


def _packages(sections: Sections) -> None:
    for package in (PACKAGE_OF_CODEC.get(sections.compress.codec, "brotli"), "python_minifier"):
        if importlib.util.find_spec(package) is None:
            name = package.replace("_", "-")
            raise InputError(f"package {name} is missing and a later stage needs it: pip install {name}")
