"""Which rows of `docs/techniques.md` a run uses, read from the page itself: one table serves reader and submission."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.errors import InputError
from pgolf.params import dotted

PAGE = Path("docs/techniques.md")
OFF = frozenset({"None", "False", "none", "0", "0.0", "1.0", "[]", "", "default", "standard", "float32", "softmax"})
"""Values, as text, that leave a technique out; 1.0 is the neutral factor."""

NEUTRAL = {"small_bits": 10, "train.ranks": 1}
"""Parameters with another neutral value."""

SWITCHES = ("rows", "heads", "last", "layer", "top_k", "sharpness")
"""Keys whose value alone says whether their section is in use."""


class Technique(NamedTuple):
    """One row."""

    name: str
    setting: str
    """As the page writes the parameter."""
    source: str


def used_techniques(params: Mapping[str, Any], modules: Collection[str], page: Path = PAGE) -> list[Technique]:
    """The rows whose module ships (`modules`: paths in the packed program) and whose parameters are set.

    Parameters as `key: value` decide alone where there are some; otherwise every key must be switched on.
    """
    if not page.is_file():
        raise InputError(f"{page} is missing: run in the folder of the repository")
    flat = dotted(params)
    found = []
    for line in page.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) < 5 or cells[0] in ("technique", "---"):
            continue
        name, _, setting, module, source = cells[:5]
        named = re.findall(r"`(\w+/\w+\.py)`", module)
        if any(f"pgolf/{path}" in modules for path in named) and _is_set(_parameters(setting), flat):
            found.append(Technique(name, setting, source))
    return found


def _parameters(setting: str) -> list[str]:
    """What stands in backticks; a command beside parameters sets nothing."""
    items = re.findall(r"`([^`]+)`", setting)
    return [item for item in items if not item.startswith("pgolf ")] or items


def _is_set(items: list[str], flat: Mapping[str, Any]) -> bool:
    """Whether the parameters of a row are set; a row without any is always there."""
    pairs = [item.split(": ", 1) for item in items if ": " in item]
    if pairs:
        return all(any(_same(value, wanted) for value in _values(key, flat)) for key, wanted in pairs)
    return all(
        any(str(value) not in OFF and value != NEUTRAL.get(key) for value in _values(key, flat)) for key in items
    )


def _values(key: str, flat: Mapping[str, Any]) -> list[Any]:
    """Values of the parameters that a key of the page names: itself, or those inside it, or of these the switch."""
    if own := [value for name, value in flat.items() if f".{name}".endswith(f".{key}")]:
        return own
    inside = {name: value for name, value in flat.items() if f".{key}." in f".{name}"}
    return [value for name, value in inside.items() if name.rpartition(".")[2] in SWITCHES] or [*inside.values()]


def _same(value: Any, wanted: str) -> bool:
    if isinstance(value, list):
        return wanted.strip("[]") in map(str, value)
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return str(value) == wanted
