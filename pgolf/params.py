"""params.yaml, read with the parser that DVC uses (YAML 1.2: `1e-3` is a number, `on` is text)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pgolf.config import build, suggest
from pgolf.errors import InputError

T = TypeVar("T")


def read_params(path: Path) -> dict[str, Any]:
    """The whole file as plain mappings and lists."""
    if not path.exists():
        raise InputError(f"{path} is missing: run in the folder that holds params.yaml, or name it with --params")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    return parse_params(text, path)


def parse_params(text: str, path: Path) -> dict[str, Any]:
    """The text of a params file as plain mappings and lists; `path` is what messages name."""
    try:
        params = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(params, Mapping):
        raise InputError(f"{path} must hold one section per stage, got {type(params).__name__}")
    return dict(params)


def section(path: Path, name: str, cls: type[T]) -> T:
    """One section of params.yaml as its dataclass; every mistake is an InputError naming the key."""
    params = read_params(path)
    if name not in params:
        raise InputError(f"{path} has no section `{name}`{suggest(name, map(str, params))}")
    return build(cls, params[name], name)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested sections."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
