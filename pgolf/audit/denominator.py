"""The byte denominator of a run of ours, counted again from pieces and documents, by other code than wrote it.

Standard tokenizers are charged by the bytes of their pieces; CaseOps by the surfaces of a sidecar, which are the text
of a document between its outer blanks.
"""

import itertools
import unicodedata
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pgolf.audit.verdict import Finding, judge
from pgolf.data import caseops
from pgolf.data.accounting import EXPORTS
from pgolf.data.byte_table import SPACE
from pgolf.data.documents import read_documents
from pgolf.data.shards import BOS
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokens import Tokens
from pgolf.errors import InputError

SHARE = 1e-3
"""Tolerance of two counts of the same bytes."""
WRONG = 0.03
"""A denominator so far above the text's own bytes is a mistake, not another way to normalise."""
DECODED = 64
"""Documents that are decoded again."""


def recount(processor: sentencepiece.SentencePieceProcessor, tokens: NDArray[np.uint16]) -> int:
    """UTF-8 bytes that the pieces of a stream spell, a space at the start of a document not counted."""
    sizes, spaced = np.zeros(len(processor), np.int64), np.zeros(len(processor), np.bool_)
    for index in range(len(processor)):
        if processor.is_byte(index):
            sizes[index] = 1
        elif not (processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index)):
            piece = processor.id_to_piece(index)
            sizes[index], spaced[index] = len(piece.replace(SPACE, " ").encode()), piece.startswith(SPACE)
    first = tokens[1:][tokens[:-1] == BOS]
    return int(sizes[tokens].sum()) - int(spaced[first].sum())


def check_bytes(tokens: Tokens, processor: sentencepiece.SentencePieceProcessor, val: str) -> list[Finding]:
    """The denominator: the sidecar against the pieces, and the documents' own bytes beside it."""
    charged = int(tokens.val_bytes[1:].sum(dtype=np.int64))
    transform = tokens.manifest.get("transform", "none")
    spelled = recount(processor, tokens.val)
    right: bool | None
    if transform == CASEOPS:
        operators = np.isin(tokens.val, np.arange(4, 8))
        spelled -= 3 * int(np.count_nonzero(operators))  # each is three bytes of UTF-8 that stand for no text
        off = abs(spelled / charged - 1)  # the sidecar counts surfaces: lines and characters that pieces normalise
        right = True if off <= SHARE else None if off <= WRONG else False
        how = "of the pieces without operators"
    else:
        right, how = spelled == charged, "of the pieces"
    found = [judge("bytes.recount", right, f"{charged:,} bytes charged, {spelled:,} {how}", "PR 2071, PR 1734")]
    return [*found, _raw(tokens, charged, val), _published(tokens)]


def _raw(tokens: Tokens, charged: int, val: str) -> Finding:
    """Bytes charged against those of the documents themselves."""
    source = "canonical and raw bytes differ by 0.004 % on FineWeb; issue 897, PR 1143"
    path = Path(val)
    if tokens.val_raw_bytes is None or not path.is_file():
        return judge("bytes.raw", None, "the validation documents are not here: only canonical bytes", source)
    raw, inner, documents = 0, 0, 0
    for text in read_documents(path):
        raw, inner, documents = raw + len(text.encode()), inner + len(text.strip().encode()), documents + 1
    text = f"{documents:,} documents, {raw:,} raw bytes, {charged / max(raw, 1) - 1:+.4%} charged"
    right: bool | None = raw == tokens.val_raw_bytes and documents == tokens.val_documents
    if right and tokens.manifest.get("transform") == CASEOPS:
        right = abs(charged / max(inner, 1) - 1) <= SHARE
        text += f", {inner:,} between the blanks of documents"
    elif right and charged > raw * (1 + SHARE):
        right = False if charged > raw * (1 + WRONG) else None
    return judge("bytes.raw", right, text, source)


def check_roundtrip(tokens: Tokens, processor: sentencepiece.SentencePieceProcessor, val: str) -> Finding:
    """The first documents, decoded from their tokens: what a tokenizer loses beside blanks and NFKC."""
    source = "PR 1578, 1585, 1670, issue 1604: lossy tokenizers; PR 1729: lossless case operators"
    path = Path(val)
    if not path.is_file():
        return judge("tokens.roundtrip", None, "the validation documents are not here", source)
    edges = [*np.flatnonzero(tokens.val == BOS).tolist(), len(tokens.val)]
    differ = count = 0
    pairs = zip(itertools.pairwise(edges), read_documents(path), strict=False)
    for (first, end), text in itertools.islice(pairs, DECODED):
        decoded = processor.decode(tokens.val[first + 1 : end].tolist())
        if tokens.manifest.get("transform") == CASEOPS:
            try:
                decoded = caseops.decode(decoded)
            except InputError:
                decoded = ""
        differ, count = differ + (_plain(decoded) != _plain(text)), count + 1
    right = False if 2 * differ > count else None if 10 * differ > count else True
    return judge("tokens.roundtrip", right, f"{differ} of the first {count} documents differ when decoded", source)


def _plain(text: str) -> str:
    """A text without blanks, as its tokenizer normalises it."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _published(tokens: Tokens) -> Finding:
    """The fingerprint of a published export; other tokens are somebody's own."""
    source = "catalogue of published exports: tokens, documents and rho of each"
    name = next((n for n, e in EXPORTS.items() if e.tokenizer_sha256 == tokens.tokenizer_sha256), None)
    seen = f"rho {tokens.tokens_per_byte:.5f}, {len(tokens.val):,} tokens, {tokens.val_documents:,} documents"
    if name is None:
        return judge("bytes.rho", None, f"{seen}: of no published tokenizer, so not comparable with records", source)
    export = EXPORTS[name]
    right = tokens.val_documents == export.val_documents and (
        abs(tokens.tokens_per_byte / export.tokens_per_byte - 1) <= SHARE
        and export.val_tokens in (None, len(tokens.val))
    )
    return judge("bytes.rho", right, f"{seen}: {name} has {export.tokens_per_byte:.5f}, {export.val_tokens}", source)
