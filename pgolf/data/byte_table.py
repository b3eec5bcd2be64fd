"""How many bytes of text each token stands for: the denominator of bits per byte.

For target y after token x: `bytes(x, y) = base[y] + (space[y] and not boundary[x])`, where `base` is the UTF-8 length
of the piece without one leading `▁` (1 for a byte piece), `space` says that the `▁` was there, and `boundary` marks
the specials. A space is thus counted once, and not at all at the start of a document.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.errors import InputError

SPACE = "▁"  # U+2581, SentencePiece's visible space
CASE_OPERATORS = ("\ue001", "\ue002", "\ue003", "\ue004")  # of pgolf.data.caseops, which is not shipped


@dataclass(frozen=True, slots=True, eq=False)
class ByteTable:
    """Three arrays indexed by token id, each of the tokenizer's vocabulary size."""

    base: npt.NDArray[np.int16]
    """Bytes of the piece without its leading space."""

    space: npt.NDArray[np.bool_]
    """The piece starts with a space."""

    boundary: npt.NDArray[np.bool_]
    """Control, unknown or unused id: it has no bytes, and no space is counted after it."""

    def counts(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Bytes charged to each of `tokens` [n] as the target after the one before it, int32 [n]; 0 for BOS.

        The first token is taken to follow a boundary. Raises InputError for an id outside the vocabulary.
        """
        vocab = len(self.base)
        if tokens.size and (int(tokens.max()) >= vocab or int(tokens.min()) < 0):
            raise InputError(
                f"token id {int(tokens.max())} is outside the tokenizer's {vocab} pieces: "
                "these tokens were made with another tokenizer"
            )
        spaced = self.space[tokens]
        spaced[:1] = False
        spaced[1:] &= ~self.boundary[tokens[:-1]]
        counts: npt.NDArray[np.int32] = self.base[tokens].astype(np.int32) + spaced
        return counts


def byte_table(processor: sentencepiece.SentencePieceProcessor) -> ByteTable:
    """Build the table of a tokenizer.

    Raises InputError where the table would miscount: no `▁` piece of its own (each lone space would turn into three
    byte pieces, issue 897 of the challenge), or case operators, which carry no text (PR 2071's wrong 1.0069).
    """
    if processor.piece_to_id(SPACE) == processor.unk_id():
        raise InputError(
            f"the tokenizer has no piece for a single space ({SPACE}), so a lone space would count 3 bytes: "
            "train it on text with spaces"
        )
    vocab = len(processor)
    base, space, boundary = np.zeros(vocab, np.int16), np.zeros(vocab, np.bool_), np.ones(vocab, np.bool_)
    for index in range(vocab):
        if processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
            continue
        boundary[index] = False
        if processor.is_byte(index):
            base[index] = 1
            continue
        piece = processor.id_to_piece(index)
        if piece in CASE_OPERATORS:
            raise InputError(
                f"token {index} is the case operator U+{ord(piece):04X}: this tokenizer's bytes cannot be read from "
                "its pieces; use shards that come with a byte sidecar, or a tokenizer without operators"
            )
        space[index] = piece.startswith(SPACE)
        base[index] = len(piece.removeprefix(SPACE).encode())
    return ByteTable(base, space, boundary)
