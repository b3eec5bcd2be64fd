"""What three logged numbers say about how a score was counted.

Loss L (nats per token), BPB b and the number of scored targets N give the bytes B that the score was divided by:

    B = L / ln 2 * N / b,      rho = N / B

rho depends on tokenizer, text and byte count, not on the model. So it is a fingerprint of a validation set, and of each
way to count it wrongly: the mistakes here were all made, on the published FineWeb exports of `catalogue`.
"""

import math
from dataclasses import dataclass

from pgolf.data.catalogue import CATALOGUE, Export
from pgolf.errors import InputError

RHO_TOLERANCE = 1e-3
WINDOW = 2048

SUBSETS = {
    9_662_464: "the first 10,000 validation documents only, the default of a preparation script (PR 1854, PR 2039)",
    23_296 * WINDOW: "the plain evaluation of PR 1855, cut to whole batches: a diagnostic, not the score",
    36_562_944: "validation shards that a preparation in parallel slices left incomplete (PR 2109)",
}
"""Numbers of targets that are known not to be the whole validation set, and what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A value of rho and what it means."""

    tokens_per_byte: float
    export: str
    """Whose tokens were counted: a name in the catalogue."""
    mistake: str | None = None
    """How; None: as they should be."""
    tolerance: float = RHO_TOLERANCE
    """Relative."""


EXPORTS = {name: export for name, export in CATALOGUE.items() if isinstance(export, Export)}

SIGNATURES = (
    *(Signature(tokens_per_byte=export.tokens_per_byte, export=name) for name, export in EXPORTS.items()),
    Signature(
        tokens_per_byte=47_851_520 / 164_594_398,
        export="sp8192-caseops",
        mistake="counted by the byte table, 3 bytes for every case operator, instead of the sidecar (PR 2071)",
    ),
    Signature(
        tokens_per_byte=0.245,
        export="sp8192",
        mistake="counted with the byte table of the CaseOps tokenizer",
        tolerance=1e-2,  # nobody gave more digits
    ),
    Signature(
        tokens_per_byte=40_540_160 / 176_332_748,
        export="sp8192",
        mistake="counted with every leading space twice (issue 1719)",
    ),
    Signature(
        tokens_per_byte=40_540_160 / (151_080_891 + 1_346_100),
        export="sp8192",
        mistake="counted with 6 bytes, the length of its label, for every byte piece (PR 1734)",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the numbers of a log say."""

    bytes: int
    """Bytes that the score was divided by."""
    tokens_per_byte: float
    """rho."""
    right: bool | None
    """Whether this is a published set, whole, and rightly counted; None: a set that is not known here."""
    text: str
    """The finding as a sentence."""
    corrected_bpb: float | None
    """The same loss over the canonical bytes, where the number of targets is that of a published set."""


def examine(val_loss: float, val_bpb: float, val_tokens: int) -> Finding:
    """Recover the byte count of a score and say what it is; InputError for numbers that no score has."""
    if not (0 < val_loss < math.inf and 0 < val_bpb < math.inf and val_tokens > 0):
        raise InputError(
            f"a loss of {val_loss}, {val_bpb} BPB and {val_tokens} tokens are no score: give three positive numbers"
        )
    bits = val_loss / math.log(2) * val_tokens
    rho = val_tokens * val_bpb / bits
    signature = next((s for s in SIGNATURES if abs(rho / s.tokens_per_byte - 1) <= s.tolerance), None)
    published = next((name for name, export in EXPORTS.items() if _is_whole(export, val_tokens)), None)
    right, text = _verdict(rho, signature, published, val_tokens)
    return Finding(
        bytes=round(bits / val_bpb),
        tokens_per_byte=rho,
        right=right,
        text=text,
        corrected_bpb=bits / val_tokens * EXPORTS[published].tokens_per_byte if published else None,
    )


def _is_whole(export: Export, targets: int) -> bool:
    """Whether a score over so many targets is one over the whole set, or over all of its whole windows."""
    return targets == export.val_targets or (export.val_tokens is not None and targets == export.val_tokens - 1)


def _verdict(rho: float, signature: Signature | None, published: str | None, targets: int) -> tuple[bool | None, str]:
    """Whether the count is right, and why."""
    if targets in SUBSETS:
        return False, f"{targets:,} targets are {SUBSETS[targets]}"
    if signature and signature.mistake:
        return False, f"rho {rho:.5f} is that of {signature.export} tokens {signature.mistake}"
    if published and not (signature and signature.export == published):
        belongs = signature.export if signature else "no known count"
        return False, (
            f"{targets:,} targets are those of {published}, whose rho is {EXPORTS[published].tokens_per_byte:.5f}: "
            f"this score's {rho:.5f} belongs to {belongs}"
        )
    if published:
        return True, f"{published}, all {targets:,} targets, over its canonical bytes"
    if signature:
        return None, f"rho {rho:.5f} is that of {signature.export}, but no published set has {targets:,} targets"
    return None, f"rho {rho:.5f} and {targets:,} targets belong to no published set"
