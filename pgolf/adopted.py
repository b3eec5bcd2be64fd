"""An adopted checkpoint in the place of a trained one: what the stage `train` does with `train.adopt`.

The result depends on the weights and on nothing else of the section, so that a changed trainer copies them again and
nothing after it runs. Its seconds are unknown, and so is the verdict on the training clock.
"""

import math
from pathlib import Path
from typing import Any

import torch

from pgolf import artifacts, paths
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.data.tokens import Tokens
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.train.config import TrainConfig


def take_adopted(model: ModelConfig, config: TrainConfig, tokens: Tokens) -> dict[str, Any]:
    """Check the checkpoint that `config.adopt` names and write it as the stage's artifacts; returns the metrics.

    Raises InputError for a file that is missing or another one, and for weights of another model or tokenizer.
    """
    assert config.adopt.file is not None
    file = Path(config.adopt.file)
    if not file.is_file():
        raise InputError(f"`train.adopt.file` {file} is missing: run `pgolf adopt` again, or set it to null to train")
    checkpoint = load_checkpoint(file)
    if checkpoint.sha256 != config.adopt.sha256:
        raise InputError(
            f"{file} has SHA-256 {checkpoint.sha256}, `train.adopt.sha256` is {config.adopt.sha256}: it is another "
            "file now; run `pgolf adopt` again"
        )
    if checkpoint.config != model:
        found, wanted = to_dict(checkpoint.config), to_dict(model)
        keys = [f"`model.{key}` {found[key]!r}, not {wanted[key]!r}" for key in wanted if found[key] != wanted[key]]
        raise InputError(f"{file} was adopted for another model ({'; '.join(keys)}): adopt it again, or undo that")
    tokens.check_model(file, checkpoint.vocab_size, checkpoint.tokenizer)
    resolved = {"model": to_dict(model), "train": {"adopt": to_dict(config.adopt)}}
    provenance: dict[str, Any] = {"stage": "train", "params": resolved, "inputs": {"adopted": checkpoint.sha256}}
    extra: dict[str, Any] = {"vocab_size": checkpoint.vocab_size, "tokenizer": checkpoint.tokenizer}
    if checkpoint.trained_on_validation:
        extra["trained_on_validation"] = True
    artifacts.save(paths.MODEL, checkpoint.state, schema="pgolf.checkpoint", **provenance, extra=extra)
    artifacts.save(paths.AVERAGES, {}, schema="pgolf.averages", **provenance)
    nothing = dict.fromkeys(("step", "seconds", "lr"), 0.0) | {"loss": math.nan}
    provenance["params"] = {"model": to_dict(model), "train": to_dict(config)}  # pictures show the section
    series = {name: torch.tensor([value]) for name, value in nothing.items()}
    artifacts.save(paths.TRACE, series, schema="pgolf.trace", **provenance)
    return {
        "adopted": True,
        "record_eligible": False,
        **({"trained_on_validation": True} if checkpoint.trained_on_validation else {}),
        **{"steps": 0, "tokens": 0, "world_size": 1},
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
    }
