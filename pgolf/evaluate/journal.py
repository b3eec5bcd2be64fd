"""What an evaluation by documents has scored so far, in the order in which it scored, and what it learned when."""

from collections.abc import Sequence
from typing import NamedTuple

from pgolf.evaluate.updates import Update


class Part(NamedTuple):
    """The journal of one rank over one phase, counted from the beginning of that phase."""

    scored: int
    updates: tuple[Update, ...]


class Journal:
    """Targets are numbered in the order in which they get their losses: phase by phase, and in a phase rank by rank.

    A rank's own updates read what it scored itself; an update of the shared weights reads what all ranks scored before.
    """

    def __init__(self) -> None:
        self.before, self.scored = 0, 0
        self.open: list[Update] = []
        self.updates: list[Update] = []

    def score(self, targets: int) -> None:
        """So many more targets have their losses."""
        self.scored += targets

    def learn(self, targets: int) -> None:
        """One step of this rank, which read some of its last so many targets and text before them."""
        self.open.append(Update(self.scored, self.scored - targets, self.scored, 1))

    def part(self) -> Part:
        """This rank's share of the phase, which ends here."""
        return Part(self.scored, tuple(self.open))

    def close(self, parts: Sequence[Part], steps: int = 0) -> None:
        """End a phase with the shares of all ranks; `steps` on the shared weights follow."""
        for scored, updates in parts:
            self.updates += [
                Update(self.before + done, self.before + first, self.before + end, number)
                for done, first, end, number in updates
            ]
            self.before += scored
        if steps:
            self.updates.append(Update(self.before, 0, self.before, steps))
        self.scored, self.open = 0, []
