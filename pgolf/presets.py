"""Presets: plain YAML files of keys that replace those of params.yaml; comments and all other keys stay.

No composition happens at run time: what params.yaml says is what runs, so `dvc params diff` tells the whole story.
"""

import io
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pgolf.artifacts import write_bytes
from pgolf.config import suggest
from pgolf.errors import InputError
from pgolf.params import parse_params, read_params
from pgolf.sections import check_sections

FOLDER = Path("presets")


def preset_files(folder: Path = FOLDER) -> dict[str, Path]:
    """Preset name to file."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise InputError(f"{folder} holds no presets: run in the folder of the repository")
    return files


def apply_preset(params: Path, *names: str, folder: Path = FOLDER) -> dict[str, int]:
    """Write the keys of presets, in order, into a params file; returns how many values each changed.

    The result is checked as a whole before the file is replaced; InputError for an unknown preset or a wrong key.
    """
    files = preset_files(folder)
    for name in names:
        if name not in files:
            raise InputError(f"`{name}` is not a preset{suggest(name, files)}")
    read_params(params)  # its errors name the file
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(params)
    changed = {name: sum(_merge(document, read_params(files[name]))) for name in names}
    text = io.StringIO()
    yaml.dump(document, text)
    try:
        check_sections(parse_params(text.getvalue(), params), params)
    except InputError as error:
        raise InputError(f"preset `{' + '.join(names)}`: {error}") from None
    write_bytes(params, text.getvalue().encode())
    return changed


def _merge(target: MutableMapping[str, Any], overlay: Mapping[str, Any]) -> Iterator[bool]:
    """Overwrite values in place; yields for each whether it changed."""
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), MutableMapping):
            yield from _merge(target[key], value)
        else:
            yield key not in target or target[key] != value
            target[key] = value
