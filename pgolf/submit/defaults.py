"""Parameters without those that have their default value: a packed program carries the defaults anyway."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from pgolf.codec.config import CompressConfig
from pgolf.config import build, to_dict
from pgolf.evaluate.config import EvaluateConfig
from pgolf.model.config import ModelConfig
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import QuantizeConfig
from pgolf.train.config import TrainConfig

SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "train": TrainConfig,
    "calibrate": CalibrateConfig,
    "quantize": QuantizeConfig,
    "compress": CompressConfig,
    "evaluate": EvaluateConfig,
}
"""The sections that a packed program builds; other parameters ship as they are."""


def compact(params: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved parameters without defaults, from which `complete` makes the same again."""
    short = {name: _changed(value, SECTIONS[name]) if name in SECTIONS else value for name, value in params.items()}
    assert complete(short) == params, "these are not resolved parameters"
    return short


def complete(params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters with their defaults; InputError for a parameter that this version does not have."""
    return {
        name: to_dict(build(SECTIONS[name], value, name)) if name in SECTIONS else value
        for name, value in params.items()
    }


def _changed(values: Mapping[str, Any], section: type) -> dict[str, Any]:
    """What differs from the defaults of a dataclass; a section inside it stands against its own class."""
    hints, changed = get_type_hints(section), {}
    for field in dataclasses.fields(section):
        value, default = values[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            default = to_dict(default)
        elif isinstance(default, tuple):
            default = list(default)
        if value != default or type(value) is not type(default):
            nested = dataclasses.is_dataclass(hints[field.name])
            changed[field.name] = _changed(value, hints[field.name]) if nested else value
    return changed
