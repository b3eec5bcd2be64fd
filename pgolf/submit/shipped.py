"""The program of a submission for resolved parameters: the runtime closure without what they do not reach."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pgolf
from pgolf.submit.pack_code import optional_modules, pack_code

SHIPPED = ("model", "train", "calibrate", "quantize", "compress", "evaluate")
"""Sections that the packed program reads; paths of documents are not among them."""


def shipped_code(resolved: Mapping[str, Any], vocab_size: int) -> bytes:
    """The packed `train_gpt.py`, whose bytes count, for all sections with their defaults."""
    params = {name: resolved[name] for name in SHIPPED} | {"vocab_size": vocab_size}
    root = Path(pgolf.__file__).parents[1]
    return pack_code("pgolf.runtime", root, params, exclude=optional_modules(params)).source
