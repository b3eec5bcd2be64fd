"""How long processes talk in a step, and how much of that runs under other work, from the profiles of all of them.

A collective ends when its last process has come, and for that one it takes as long as the data travels: the others
also wait. With t[k, r] the time of collective k on rank r, and r(k) the rank where it is shortest,

    communication  sum over k of t[k, r(k)]
    hidden         the part of that under which something else runs on r(k)
    waiting        mean over r of the sum over k of t[k, r], less the communication
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.autograd.profiler_util import FunctionEvent

Span = tuple[float, float]
"""Start and end, microseconds."""
COLLECTIVE = re.compile(r"nccl\w*Kernel|gloo:")
"""How the names of collectives begin: kernels of NCCL, operations of gloo."""
AROUND = ("nccl", "c10d", "record_param_comms")
"""What occurs in the names of calls that only start one."""


class Collective(NamedTuple):
    """One on one rank, milliseconds."""

    milliseconds: float
    hidden: float


class Communication(NamedTuple):
    """Of a step, milliseconds: see above."""

    milliseconds: float
    hidden: float
    waiting: float


def collectives(events: Iterable[FunctionEvent], device: str) -> list[Collective]:
    """Those of a profile, in order; `device` is cpu or cuda."""
    talk, work = [], []
    for event in events:
        if event.device_type.name == device.upper():
            span = event.time_range.start, event.time_range.end
            if COLLECTIVE.match(event.name):
                talk.append(span)
            elif not event.is_user_annotation and not any(sign in event.name for sign in AROUND):
                work.append(span)
    busy = union(work)
    return [Collective((end - start) / 1e3, covered((start, end), busy) / 1e3) for start, end in sorted(talk)]


def union(spans: Iterable[Span]) -> list[Span]:
    """Spans without overlap that cover the same, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def covered(span: Span, others: Iterable[Span]) -> float:
    """How much of a span lies under others, which do not overlap."""
    return sum(max(0.0, min(span[1], end) - max(span[0], start)) for start, end in others)


def communication(by_rank: Sequence[Sequence[Collective]], steps: int) -> Communication | None:
    """Of one of `steps` profiled steps; None where a profile has lost events."""
    if len(set(map(len, by_rank))) > 1:
        return None
    shortest = [min(same) for same in zip(*by_rank, strict=True)]
    travel = sum(each.milliseconds for each in shortest)
    all_time = sum(each.milliseconds for found in by_rank for each in found) / len(by_rank)
    return Communication(travel / steps, sum(each.hidden for each in shortest) / steps, (all_time - travel) / steps)
