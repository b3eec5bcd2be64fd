"""Presets: plain YAML files of keys that replace those of params.yaml; comments and all other keys stay.

A published system has an `expected_verdict`: what an audit of it finds. It sets every knob of its sections, those that
it does not name to their defaults (PR 1493's), so that nothing of the system before it stays behind. Overlays set only
what they name. No composition happens at run time: what params.yaml says is what runs, so `dvc params diff` tells the
whole story.
"""

import copy
import io
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from pgolf.artifacts import write_bytes
from pgolf.config import build, suggest, to_dict
from pgolf.errors import InputError
from pgolf.params import parse_params, read_params
from pgolf.sections import Sections, check_sections

FOLDER = Path("presets")
VERDICT, PUBLISHED = "expected_verdict", "published"
"""Keys that are no parameters: what an audit finds, and the facts that it judges."""
WHOLE = ("model", "train", "calibrate", "quantize", "compress", "evaluate")
"""Sections that a system sets as a whole."""


def preset_files(folder: Path = FOLDER) -> dict[str, Path]:
    """Preset name to file."""
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise InputError(f"{folder} holds no presets: run in the folder of the repository")
    return files


def apply_preset(
    params: Path, *names: str, also: Mapping[str, Any] | None = None, folder: Path = FOLDER
) -> dict[str, int]:
    """Write the keys of presets, in order, and then those of `also` into a params file.

    Returns how many values each preset changed. The result is checked as a whole before the file is replaced;
    InputError for an unknown preset or a wrong key.
    """
    chosen = _chosen(names, folder)
    read_params(params)  # its errors name the file
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(params)
    changed = {name: sum(_merge(document, found)) for name, found in chosen}
    list(_merge(document, also or {}))  # it merges as it is walked
    text = io.StringIO()
    yaml.dump(document, text)
    try:
        check_sections(parse_params(text.getvalue(), params), params)
    except InputError as error:
        raise InputError(f"preset `{' + '.join(names)}`: {error}" if names else str(error)) from None
    write_bytes(params, text.getvalue().encode())
    return changed


def with_presets(params: Mapping[str, Any], *names: str, folder: Path = FOLDER) -> dict[str, Any]:
    """The same in memory: a copy of the document `params` with the keys of presets, unchecked."""
    document = copy.deepcopy(dict(params))
    for _, found in _chosen(names, folder):
        list(_merge(document, found))  # it merges as it is walked
    return document


def sections_with(params: Path, *names: str, folder: Path = FOLDER) -> Sections:
    """What a params file holds once presets are applied, checked like a file; nothing is written."""
    return check_sections(with_presets(read_params(params), *names, folder=folder), params)


def expected_verdict(path: Path) -> str | None:
    """What an audit of a published system finds; None for an overlay."""
    found = read_params(path).get(VERDICT)
    return None if found is None else str(found["text"])


def _chosen(names: Sequence[str], folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """These presets with what each writes, in order; InputError for an unknown one."""
    files = preset_files(folder) if names else {}
    for name in names:
        if name not in files:
            raise InputError(f"`{name}` is not a preset{suggest(name, files)}")
    return [(name, _keys(name, files[name])) for name in names]


def _keys(name: str, path: Path) -> dict[str, Any]:
    """What a preset writes into params.yaml."""
    preset = read_params(path)
    if preset.pop(VERDICT, None) is None:
        return preset
    preset.pop(PUBLISHED, None)
    hints = get_type_hints(Sections)
    try:
        whole = {section: to_dict(build(hints[section], preset.get(section, {}), section)) for section in WHOLE}
    except InputError as error:
        raise InputError(f"preset `{name}`: {error}") from None
    return preset | whole


def _merge(target: MutableMapping[str, Any], overlay: Mapping[str, Any]) -> Iterator[bool]:
    """Overwrite values in place; yields for each whether it changed."""
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), MutableMapping):
            yield from _merge(target[key], value)
        else:
            yield key not in target or target[key] != value
            old = target.get(key)
            if isinstance(value, list) and isinstance(old, CommentedSeq):  # in place: it keeps style and comment
                if not old:
                    old.fa.set_flow_style()
                del old[:]
                old.extend(value)
            else:
                target[key] = value
