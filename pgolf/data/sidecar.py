"""Whether byte counts can be those of these tokens under this tokenizer: the checks behind every reported BPB.

A standard tokenizer's sidecar is its byte table, number for number. Under CaseOps the pieces do not tell their bytes,
but one thing is certain: an operator stands for no text. PR 2071 charged each of its 4.5 million operators 3 bytes and
reported 1.0069 for 1.0970.
"""

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.data.byte_table import CASE_OPERATORS, byte_table
from pgolf.data.shards import BOS
from pgolf.errors import InputError

NONE = "none"
CASEOPS = "lossless_caps_caseops_v1"
TRANSFORMS = (NONE, CASEOPS)
"""What a manifest's `transform` may say was done to the text before it was tokenized."""

FIRST_OPERATOR = 4
AGAIN = "run `pgolf tokenize` again, or fetch tokens and sidecar again"


def has_case_operators(processor: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether a tokenizer is one for CaseOps text: ids 4 to 7 are the operators.

    Raises InputError when it holds some of them elsewhere: its tokens would mean neither.
    """
    missing = processor.unk_id()
    ids = [processor.piece_to_id(operator) for operator in CASE_OPERATORS]
    if ids == list(range(FIRST_OPERATOR, FIRST_OPERATOR + len(ids))):
        return True
    if any(index != missing for index in ids):
        places = ", ".join(
            f"U+{ord(operator):04X} at {index}"
            for operator, index in zip(CASE_OPERATORS, ids, strict=True)
            if index != missing
        )
        raise InputError(
            f"the tokenizer has case operators at other ids than 4 to 7 ({places}): take a CaseOps tokenizer, or train "
            "one on text without these private-use characters"
        )
    return False


def check_sidecar(
    processor: sentencepiece.SentencePieceProcessor,
    tokens: npt.NDArray[np.uint16],
    counts: npt.NDArray[np.integer],
    transform: str,
) -> None:
    """Raise InputError unless `counts` [n] can be the bytes of `tokens` [n], made with `transform`."""
    if transform not in TRANSFORMS:
        raise InputError(f"the manifest's `transform` is {transform!r}, not one of {', '.join(TRANSFORMS)}: {AGAIN}")
    if has_case_operators(processor) != (transform == CASEOPS):
        raise InputError(
            f"the tokenizer {'has' if transform == NONE else 'lacks'} case operators, but the tokens were made with "
            f"`transform` {transform!r}: tokens, byte sidecar and tokenizer do not belong together; {AGAIN}"
        )
    if charged := int(counts[tokens == BOS].sum(dtype=np.int64)):
        raise InputError(f"the byte sidecar charges {charged} bytes to BOS, which stands for no text: {AGAIN}")
    if transform == CASEOPS:
        _check_operators(tokens, counts)
    else:
        _check_table(tokens, counts, byte_table(processor).counts(tokens))


def _check_operators(tokens: npt.NDArray[np.uint16], counts: npt.NDArray[np.integer]) -> None:
    """Operators count nothing, unless the token before is ESC."""
    escape = FIRST_OPERATOR + len(CASE_OPERATORS) - 1
    operators = (tokens >= FIRST_OPERATOR) & (tokens <= escape)
    operators[1:] &= tokens[:-1] != escape
    if charged := int(counts[operators].sum(dtype=np.int64)):
        raise InputError(
            f"the byte sidecar charges {charged} bytes to {int(np.count_nonzero(operators))} case operators, which "
            f"stand for no text: it was made from the pieces, not from the text (PR 2071); {AGAIN}"
        )


def _check_table(
    tokens: npt.NDArray[np.uint16], counts: npt.NDArray[np.integer], expected: npt.NDArray[np.int32]
) -> None:
    """A standard tokenizer's counts are its table's."""
    wrong = counts != expected
    if wrong.any():
        first = int(wrong.argmax())
        raise InputError(
            f"the byte sidecar counts {int(counts.sum(dtype=np.int64))} bytes, the tokenizer's pieces "
            f"{int(expected.sum(dtype=np.int64))} (first difference: token {first}, id {tokens[first]}, has "
            f"{counts[first]} instead of {expected[first]}): {AGAIN}"
        )
