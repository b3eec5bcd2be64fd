"""Published records with a per-seed table: what a submission is compared with. Another one is read from its folder."""

import math
from dataclasses import dataclass

from pgolf.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One record as its authors and logs state it."""

    title: str
    bpb: dict[int, float]
    """Seed -> validation BPB."""
    scored_tokens: int
    """Targets of the validation stream under its tokenizer."""
    scored_bytes: int
    """Bytes charged to them."""
    artifact_bytes: dict[int, int]
    """Seed -> packed code + model."""
    source: str

    def losses(self) -> dict[int, float]:
        """Seed -> nats per token: BPB ln 2 bytes / tokens."""
        return {seed: bpb * math.log(2) * self.scored_bytes / self.scored_tokens for seed, bpb in self.bpb.items()}


RECORDS = {
    "PR1855": Published(
        title="SP8192, CaseOps, LQER, sparse gate, phased test-time training: the last row of the snapshot",
        bpb={42: 1.05989454, 0: 1.06124613, 1234: 1.06208695},
        scored_tokens=47_851_520,
        scored_bytes=151_074_499,
        artifact_bytes={42: 15_897_259, 0: 15_900_947, 1234: 15_907_550},
        source="PR 1855, logs of the three seeds; its std .00090 BPB / .00198 nats divides by n, not n - 1",
    ),
}
"""Name -> record. Rows that were merged after the snapshot (PR 2146) have no per-seed table here."""


def record(name: str) -> Published:
    """The record called `name`; InputError lists the known ones."""
    if name not in RECORDS:
        raise InputError(f"`{name}` is no record with a per-seed table here (known: {', '.join(RECORDS)})")
    return RECORDS[name]
