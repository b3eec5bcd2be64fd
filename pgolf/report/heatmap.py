"""Chosen documents as text in which the colour of every token is its surprise, for a page without scripts."""

import html
import math
from collections.abc import Iterator, Sequence

import numpy as np
import sentencepiece

from pgolf.data.byte_table import CASE_OPERATORS, SPACE
from pgolf.data.shards import BOS
from pgolf.report.breakdown import Scored, document_bpb, document_bytes

STEPS = 9
"""Shades; the last is for `FULL` bits and more."""
FULL = 16.0
LONGEST = 500
"""Tokens shown of a document."""
OPERATORS = dict(zip(CASE_OPERATORS, "↑⇑↗⎋", strict=True))
"""How CaseOps' operators are written: next word capitalised, all capitals, next letter capital, escape."""
SHADES = ["#ffffff", "#fff4e0", "#ffe8c2", "#fddaa0", "#fbc97c", "#f6b45a", "#ee9c3d", "#e38427", "#d56d16"]


def styles() -> str:
    """The shades as CSS classes `b0` to `b8`; black text is readable on all of them."""
    return "\n".join(f".b{step}{{background:{shade}}}" for step, shade in enumerate(SHADES))


def scale() -> str:
    """The legend: a sample of every shade with its bits."""
    width = FULL / (STEPS - 1)
    cells = [f"<span class=b{step}>{step * width:g}</span>" for step in range(STEPS)]
    return f"<p class=scale>bits per token: {' '.join(cells)} and more</p>"


def choose(scored: Scored, count: int = 3) -> list[int]:
    """Documents from the easiest to the hardest at equal ranks, among those with at least the median's text."""
    bpb, sizes = document_bpb(scored), document_bytes(scored)
    able = np.flatnonzero(np.isfinite(bpb) & (sizes >= np.median(sizes)))
    ranked = able[np.argsort(bpb[able], kind="stable")]
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [int(index) for index in ranked[places]]


def document(scored: Scored, processor: sentencepiece.SentencePieceProcessor, number: int) -> str:
    """One document, its first `LONGEST` tokens, as a paragraph; every token says its bits when pointed at."""
    starts = np.flatnonzero(scored.tokens == BOS)
    begin = int(starts[number]) + 1
    end = int(starts[number + 1]) if number + 1 < len(starts) else len(scored.tokens)
    shown = slice(begin, min(end, begin + LONGEST))
    bits = scored.bits[begin - 1 : shown.stop - 1]
    cells = [
        f'<span class=b{shade(value)} title="{html.escape(label)}: {value:.2f} bits">{html.escape(text)}</span>'
        for (text, label), value in zip(surfaces(scored.tokens[shown].tolist(), processor), bits.tolist(), strict=True)
    ]
    left = end - shown.stop
    more = f" <i>… {left:,} more tokens</i>" if left else ""
    return f"<p class=tokens>{''.join(cells)}{more}</p>"


def shade(bits: float) -> int:
    """The shade of a number of bits, 0 to `STEPS` - 1."""
    return min(STEPS - 1, max(0, round(bits * (STEPS - 1) / FULL))) if math.isfinite(bits) else STEPS - 1


def surfaces(tokens: Sequence[int], processor: sentencepiece.SentencePieceProcessor) -> Iterator[tuple[str, str]]:
    """The text that each token shows, and its name. A character of several byte pieces is shown by the last of them."""
    pending = b""
    for token in tokens:
        piece = processor.id_to_piece(token)
        if processor.is_byte(token):
            pending += bytes([int(piece[1:-1], 16)])
            text = _decoded(pending)
            if text is None:
                yield "·", piece
                continue
            pending = b""
            yield text.replace("\n", "↵\n"), piece
            continue
        pending = b""
        text = OPERATORS.get(piece, piece.replace(SPACE, " "))
        yield text.replace("\n", "↵\n"), OPERATORS.get(piece, piece)


def _decoded(data: bytes) -> str | None:
    """The characters of whole UTF-8 text, a mark for bytes that cannot become any, None while some are missing."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return None if error.reason == "unexpected end of data" and len(data) < 4 else "\N{REPLACEMENT CHARACTER}"
