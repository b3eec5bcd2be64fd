"""CaseOps: capital letters as operators in front of lower-case words, so that `The`, `the` and `THE` share a piece.

The lossless transform `lossless_caps_caseops_v1` of PR 1729. A word is a maximal run of ASCII letters:

    launch -> launch      Launch -> TITLE launch      NASA -> ALLCAPS nasa
    iPhone -> i CAPNEXT phone                         McDonald -> TITLE mc CAPNEXT donald

Operators are private-use characters that the tokenizer holds as symbols of their own (ids 4 to 7); one that stands in
the text itself gets ESC in front. `decode(encode(text)) == text` for every string.
"""

import re
from collections.abc import Iterable

from pgolf.data.byte_table import CASE_OPERATORS
from pgolf.errors import InputError

TITLE, ALLCAPS, CAPNEXT, ESC = CASE_OPERATORS

_OPERATOR = re.compile(f"[{''.join(CASE_OPERATORS)}]")
_LEAD = CASE_OPERATORS[0].encode()[:2]  # the first bytes of every operator in UTF-8
_CAPITAL = re.compile("[A-Z]")
_FROM_CAPITAL = re.compile("[A-Z][A-Za-z]*")  # a word from its first capital on: lower-case words never match


def encode(text: str) -> str:
    """Write capitals as operators and escape operators."""
    if not text.isascii():
        text = _OPERATOR.sub(lambda match: ESC + match[0], text)
    return _FROM_CAPITAL.sub(_spell, text)


def _spell(match: re.Match[str]) -> str:
    """One word from its first capital on. A lone capital is TITLE; whatever fits no other operator gets CAPNEXT."""
    word, start = match[0], match.start()
    inside = start > 0 and "a" <= match.string[start - 1] <= "z"
    lower = word.lower()
    if len(word) > 1 and not inside and word.isupper():
        return ALLCAPS + lower
    first = CAPNEXT if inside else TITLE
    if word[1:] == lower[1:]:
        return first + lower
    return first + lower[0] + _CAPITAL.sub(lambda capital: CAPNEXT + capital[0].lower(), word[1:])


def decode(text: str) -> str:
    """Undo `encode`.

    Raises InputError, with the position, for an operator that no capital letter can follow from: two in a row, one
    inside a word that only a word's start may have, one without a letter after it, an ESC at the end.
    Stricter than the published decoder, which lets CAPNEXT or ESC follow TITLE and ALLCAPS: `encode` never writes that.
    """
    out: list[str] = []
    pending = ""  # an operator that waits for its letter
    escaped = in_word = all_caps = False
    for position, char in enumerate(text):
        letter = char.isascii() and char.isalpha()
        if escaped:
            escaped = False
            in_word, all_caps = in_word and letter, all_caps and letter
            out.append(char)
        elif char in CASE_OPERATORS:
            if pending or (in_word and char in (TITLE, ALLCAPS)):
                raise _misplaced(char, position, f"after {_name(pending)}" if pending else "inside a word")
            escaped = char == ESC
            pending = "" if escaped else char
        elif letter:
            if pending == ALLCAPS:
                all_caps = True
            out.append(char.upper() if all_caps or pending else char)
            pending, in_word = "", True
        elif pending:
            raise _misplaced(pending, position - 1, "without a letter after it")
        else:
            in_word = all_caps = False
            out.append(char)
    if pending or escaped:
        raise _misplaced(pending or ESC, len(text) - 1, "at the end of the text")
    return "".join(out)


def _misplaced(operator: str, position: int, where: str) -> InputError:
    return InputError(
        f"case operator {_name(operator)} at character {position} stands {where}: this is no CaseOps text; give text "
        "that CaseOps wrote, from its beginning"
    )


def _name(operator: str) -> str:
    return ("TITLE", "ALLCAPS", "CAPNEXT", "ESC")[CASE_OPERATORS.index(operator)]


def surface_bytes(surfaces: Iterable[bytes]) -> list[int]:
    """Bytes of the original text behind each surface of a document, in order.

    A surface is the part of the transformed text, in UTF-8, that a token stands for. Operators and ESC count nothing,
    an escaped operator and every other character its UTF-8 length (a letter 1, whatever its case).
    """
    counts: list[int] = []
    escaped = False
    for surface in surfaces:
        if _LEAD not in surface:
            counts.append(len(surface))
            escaped = escaped and not surface
            continue
        count = 0
        for char in surface.decode():
            if escaped or char not in CASE_OPERATORS:
                count += len(char.encode())
                escaped = False
            else:
                escaped = char == ESC
        counts.append(count)
    return counts
