"""All sections of params.yaml together: for commands that look at a whole run rather than at one stage."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from pgolf.codec.config import CompressConfig
from pgolf.config import build, suggest, to_dict
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.model.config import ModelConfig
from pgolf.params import read_params
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import QuantizeConfig
from pgolf.submit.config import VerifyConfig
from pgolf.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Sections:
    """One attribute per section, under the section's name."""

    data: DataConfig
    tokenize: TokenizeConfig
    model: ModelConfig
    train: TrainConfig
    calibrate: CalibrateConfig
    quantize: QuantizeConfig
    compress: CompressConfig
    evaluate: EvaluateConfig
    verify_size: VerifyConfig

    def resolved(self) -> dict[str, Any]:
        """Every parameter with its value, defaults included."""
        return to_dict(self)


def load_sections(path: Path) -> Sections:
    """Check the whole file; InputError for the first unknown, missing or wrong key."""
    return check_sections(read_params(path), path)


def check_sections(params: Mapping[str, Any], path: Path) -> Sections:
    """All sections as dataclasses; `path` is what messages name."""
    names = [field.name for field in fields(Sections)]
    for name in params:
        if name not in names:
            raise InputError(f"`{name}` is not a section of {path}{suggest(str(name), names)}")
    for name in names:
        if name not in params:
            raise InputError(f"{path} has no section `{name}`: add `{name}: {{}}` for its defaults")
    hints = get_type_hints(Sections)
    return Sections(**{name: build(hints[name], params[name], name) for name in names})
