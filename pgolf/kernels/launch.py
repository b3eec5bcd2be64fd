"""How passes are shared out to programs."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl

PER_MULTIPROCESSOR = 8


@triton.jit
def rows(tokens, HEADS: tl.constexpr, D: tl.constexpr, T: tl.constexpr):
    """Of a program that takes T tokens and HEADS heads of D dimensions: token and head of each of its rows, the columns
    [1, D], and which elements there are.
    """
    each = tl.arange(0, T * HEADS)
    token = (tl.program_id(0) * T + each // HEADS).to(tl.int64)
    columns = tl.arange(0, D)[None, :]
    return token, each % HEADS, columns, (token < tokens)[:, None] & (columns < D)


@triton.jit
def rates(weight, gate, columns, D: tl.constexpr, GATED: tl.constexpr):
    """w and g = sigmoid(gate) of a skip [1, D]; without a gate g is not read."""
    w = tl.load(weight + columns, mask=columns < D, other=0.0).to(tl.float32)
    g = w
    if GATED:
        g = tl.sigmoid(tl.load(gate + columns, mask=columns < D, other=0.0).to(tl.float32))
    return w, g


def shares(device: torch.device, blocks: int, programs: int = PER_MULTIPROCESSOR) -> tuple[int, int]:
    """For a pass whose sums over tokens are added at the end: programs for `blocks` pieces of work, and the most pieces
    of one; so many programs for each multiprocessor, two in the interpreter.
    """
    most = 2
    if device.type == "cuda":
        most = programs * torch.cuda.get_device_properties(device).multi_processor_count
    count = max(1, min(most, blocks))
    return count, -(-blocks // count)
