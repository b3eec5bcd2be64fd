"""docs/techniques.md names what there is: modules that exist, and every knob of the model that is a technique."""

import dataclasses
import re
from pathlib import Path

from pgolf.model.config import ModelConfig
from pgolf.submit.pack_code import OPTIONAL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/techniques.md").read_text("utf-8")
SHAPES = {"layers", "dim", "mlp_mult"}


def test_named_modules_exist() -> None:
    named = set(re.findall(r"`((?:model|train|data|quant|codec|evaluate|submit|sweep)/\w+\.py)`", PAGE))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / "pgolf" / name).is_file()]


def test_every_knob_of_the_model_is_on_the_page() -> None:
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", PAGE))))
    missing = {field.name for field in dataclasses.fields(ModelConfig)} - SHAPES - words
    assert not missing


def test_every_optional_module_of_model_and_training_is_on_the_page() -> None:
    paths = [module.removeprefix("pgolf.").replace(".", "/") + ".py" for module in OPTIONAL]
    assert not [path for path in paths if path.startswith(("model/", "train/")) and path not in PAGE]
