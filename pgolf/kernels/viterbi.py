"""The cheapest path through a trellis (`pgolf.quant.trellis`): one program for each line, all states of a step at once.

The last bit z0 of a state decides the first bit of the next one, so with v bits and g = floor(h / 2) of the code's h

    ways into s:  z0 = s >> (v - 1),   a = s xor z0 g0 xor z1 g1,   from 2 a + z0, on the level of class z0 + 2 z1
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _level(x, label):  # type: ignore[no-untyped-def]
    """The nearest level of a class r mod 4; halves are rounded up."""
    quarter = tl.floor((x - label) * 0.25 + 0.5)
    return tl.minimum(tl.maximum(quarter, -31.0), 31.0) * 4 + label


@triton.jit
def _forward(x, second, best, T: tl.constexpr, G0: tl.constexpr, G1: tl.constexpr, STATES: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(0)
    s = tl.arange(0, STATES)
    z0 = s // (STATES // 2)
    a = s ^ (z0 * G0)
    first, other = 2 * a + z0, 2 * (a ^ G1) + z0
    cost = tl.where(s == 0, 0.0, 1e30)
    for t in tl.range(0, T):
        value = tl.load(x + line * T + t)
        error0, error1 = value - _level(value, 0.0), value - _level(value, 1.0)
        error2, error3 = value - _level(value, 2.0), value - _level(value, 3.0)
        by_first = tl.gather(cost, first, 0) + tl.where(z0 == 0, error0 * error0, error1 * error1)
        by_other = tl.gather(cost, other, 0) + tl.where(z0 == 0, error2 * error2, error3 * error3)
        tl.store(second + (line * T + t).to(tl.int64) * STATES + s, (by_other < by_first).to(tl.int8))
        cost = tl.minimum(by_first, by_other)
    tl.store(best + line, tl.argmin(cost, 0))


@triton.jit
def _backward(x, second, best, out, T: tl.constexpr, G0: tl.constexpr, G1: tl.constexpr, STATES: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(0)
    s = tl.load(best + line)
    for back in tl.range(0, T):
        t = T - 1 - back
        z1 = tl.load(second + (line * T + t).to(tl.int64) * STATES + s).to(tl.int32)
        z0 = s // (STATES // 2)
        tl.store(out + line * T + t, _level(tl.load(x + line * T + t), (z0 + 2 * z1).to(tl.float32)))
        s = 2 * (s ^ (z0 * G0) ^ (z1 * G1)) + z0


def viterbi(x: Tensor, states: int, polynomials: tuple[int, int]) -> Tensor:
    """Levels float32 [n, T] of numbers float32 [n, T] in one piece of memory, by the code with these h0 and h1."""
    lines, T = x.shape
    g0, g1 = (h >> 1 for h in polynomials)
    second = torch.empty(lines, T, states, dtype=torch.int8, device=x.device)
    best, out = torch.empty(lines, dtype=torch.int32, device=x.device), torch.empty_like(x)
    _forward[(lines,)](x, second, best, T, G0=g0, G1=g1, STATES=states, num_warps=max(1, states // 128))
    _backward[(lines,)](x, second, best, out, T, G0=g0, G1=g1, STATES=states, num_warps=1)
    return out
