"""Strict typed configuration: a mapping becomes a frozen dataclass, or one clear error.

Every params section is a frozen dataclass that lives in the package it configures; this module knows none of them.
Unknown keys are errors with a suggestion and nothing is converted silently, because `dvc exp run -S` retypes values
(a quoted "6" comes back as the integer 6). Standard library only: it belongs to the runtime closure.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pgolf.errors import InputError

T = TypeVar("T")


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean `x`?"` for the closest known name, or the list of names where nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f" (known: {', '.join(names)})"


def build(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass `cls` from a mapping; `where` is the dotted key that messages name.

    Raises InputError for an unknown key, a missing key without default, a wrong type, or a value that the class
    itself refuses in `__post_init__`.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"`{where}` must be a mapping of keys to values, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise InputError(f"`{where}.{key}` is not a parameter{suggest(str(key), fields)}")
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for name, field in fields.items():
        if name in values:
            kwargs[name] = _convert(hints[name], values[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"`{where}.{name}` is missing: add it to the `{where}` section")
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(f"in `{where}`: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one value against its annotation; only int -> float and list -> tuple are conversions."""
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        raise InputError(f"`{where}` is {value!r}; it must be one of {', '.join(map(repr, args))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"`{where}` is {value!r}; it must be a list")
        return tuple(_convert(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not hint:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        raise InputError(f"`{where}` is {value!r} ({type(value).__name__}); it must be {names.get(hint, hint)}")
    if hint is float and not math.isfinite(value):  # no artifact could name it: JSON has neither NaN nor infinity
        raise InputError(f"`{where}` is {value}; it must be a finite number")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain lists and dicts, ready for `canonical`."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config))))


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN. Equal content gives equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
