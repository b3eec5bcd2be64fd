"""The parts of a training step that its kernels belong to, told by their names."""

from collections.abc import Iterable
from typing import NamedTuple

PARTS = {
    "attention": ("flash", "fmha", "attention", "_prepare"),
    "loss": ("log_softmax", "_loss_rows", "nll_loss"),
    "activation": ("leaky",),
    "matrix products": (
        "nvjet", "gemm", "cutlass", "splitk", "mm.out", "::mm", "::addmm", "::bmm", "::baddbmm", "_up", "_down",
    ),
    "optimizer and averages": ("multi_tensor", "adam", "foreach"),
    "copies and fills": (
        "memcpy", "memset", "copy_kernel", "::copy_", "::_to_copy", "fillfunctor", "catarray", "::cat", "::fill_",
        "::zero_",
    ),
    "norms, residuals, gates": (
        "norm", "_heads_", "_queries_", "_along", "_gated_", "_lanes_", "_end_", "_embed_", "_column_sums", "_round",
        "_transpose", "fold", "addcmul", "triton_", "mul", "add",
    ),
}  # fmt: skip
"""Part -> what occurs in the names of its kernels, in small letters; the first part that fits takes a kernel."""

OTHER = "other"


class Part(NamedTuple):
    """What a part took of a step."""

    name: str
    calls: float
    milliseconds: float
    share: float


def part_of(kernel: str) -> str:
    """The part of a kernel of that name."""
    small = kernel.lower()
    return next((part for part, signs in PARTS.items() if any(sign in small for sign in signs)), OTHER)


def by_part(kernels: Iterable[tuple[str, float, float, float]]) -> list[Part]:
    """Sums of (name, calls, milliseconds, share) by part, the longest first."""
    sums: dict[str, list[float]] = {}
    for name, *figures in kernels:
        held = sums.setdefault(part_of(name), [0.0, 0.0, 0.0])
        for place, figure in enumerate(figures):
            held[place] += figure
    return sorted((Part(name, *held) for name, held in sums.items()), key=lambda part: -part.milliseconds)
