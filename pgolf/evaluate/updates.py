"""The interval log of an adapting evaluation: which tokens every change of the weights could have seen.

An evaluation scores first when each update's tokens lie below what was scored before it: end <= scored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Update(NamedTuple):
    """Consecutive optimizer steps between two scorings.

    Targets are counted from the start of the stream, or in the order of scoring where that is another one: see
    `pgolf.evaluate.journal`.
    """

    scored: int
    """Targets [0, scored) had their final losses when the first of these steps began."""
    first: int
    """The steps read targets [first, end) and the tokens before them."""
    end: int
    steps: int


def as_table(updates: Sequence[Update]) -> Tensor:
    """int32 [updates, 4], one column per field."""
    return torch.tensor(updates, dtype=torch.int32).view(-1, len(Update._fields))
