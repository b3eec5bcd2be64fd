"""Every parameter with type, default and meaning, read from the dataclasses of the sections: docs/parameters.md."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple, get_type_hints

from pgolf.config import canonical, suggest
from pgolf.errors import InputError
from pgolf.sections import Sections

HEAD = """\
# Parameters

Every key of `params.yaml`: its type, the value that it has where nobody sets it, and what it means. The defaults are
those of PR 1493; the values of the bundled run stand in `params.yaml`. This page is the output of `pgolf parameters`.
"""

TYPES = {"bool": "true or false", "float": "number", "int": "whole number", "str": "text"}
SYNTAX = {"Literal[": "one of ", "tuple[": "list of ", ", ...]": "", " | None": " or null", "]": "", "'": ""}
"""Python's notation -> words, in this order."""


class Parameter(NamedTuple):
    """One key."""

    key: str
    """Dotted, with its section."""
    type: str
    default: str
    """As YAML; empty where the key must be given."""
    meaning: str


def page() -> str:
    """docs/parameters.md: a table per section."""
    blocks = [HEAD]
    for name, cls in get_type_hints(Sections).items():
        blocks.append(f"## `{name}`\n\n{_summary(cls)}\n\n{_table(list(parameters(cls, name)))}\n")
    return "\n".join(blocks)


def excerpt(word: str) -> str:
    """The parameters whose key holds `word`; InputError with a suggestion where there is none."""
    known = [found for name, cls in get_type_hints(Sections).items() for found in parameters(cls, name)]
    chosen = [found for found in known if word in found.key]
    if not chosen:
        raise InputError(f"no parameter is called `{word}`{suggest(word, [found.key for found in known])}")
    return "\n".join(f"{p.key} ({_words(p.type)}, default {p.default or 'none'}): {p.meaning}" for p in chosen) + "\n"


def parameters(cls: type, prefix: str, values: Any = dataclasses.MISSING) -> Iterator[Parameter]:
    """The keys of a dataclass in order, those of nested ones in place; `values` is an instance with the defaults."""
    written = {name: (kind, text) for name, kind, text in _fields(cls)}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, meaning = written[field.name]
        default = getattr(values, field.name) if values is not dataclasses.MISSING else _default(field)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from parameters(hints[field.name], f"{prefix}.{field.name}", default)
            continue
        shown = "" if default is dataclasses.MISSING else _yaml(default)
        yield Parameter(f"{prefix}.{field.name}", kind, shown, meaning)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _yaml(value: Any) -> str:
    """`null`, `true`, `[1,2]`, text without quotes."""
    if isinstance(value, str):
        return value
    return canonical(list(value) if isinstance(value, tuple) else value)


def _fields(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, annotation as written and docstring of every field in the source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield node.target.id, ast.unparse(node.annotation), " ".join(str(text).split())


def _summary(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def _table(rows: list[Parameter]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row.key}`", _words(row.type), f"`{row.default}`" if row.default else "-", row.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _words(annotation: str) -> str:
    """An annotation as people say it; the values of a literal stay as they are."""
    text = re.sub(r"'[^']*'|\w+", lambda found: TYPES.get(found[0], found[0]), annotation)
    for python, words in SYNTAX.items():
        text = text.replace(python, words)
    return text
