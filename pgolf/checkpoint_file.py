"""The checkpoint that `train` writes, as later stages read it: weights with the shape constants they belong to."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf import artifacts
from pgolf.config import build
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT


class Checkpoint(NamedTuple):
    """Full-precision weights and what they are for."""

    state: dict[str, Tensor]
    config: ModelConfig
    vocab_size: int
    tokenizer: str
    """SHA-256 of the tokenizer."""
    sha256: str
    """SHA-256 of the file."""
    trained_on_validation: bool = False
    """Made by `pgolf prequant`: what comes of it is not valid for records."""

    def build(self, device: torch.device, dtype: torch.dtype) -> GPT:
        """The model with these weights."""
        with torch.device("meta"):
            model = GPT(self.config, self.vocab_size, dtype)
        try:
            model.load_state_dict(self.state, assign=True)
        except RuntimeError as error:
            raise InputError(
                f"the checkpoint does not fit its own shape constants ({error}): run `pgolf train` again"
            ) from None
        return model.to(device)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint; InputError as for every artifact."""
    state, meta = artifacts.load(path, schema="pgolf.checkpoint", made_by="train")
    try:
        config = build(ModelConfig, meta["params"]["model"], "model")
        sha256, seen = artifacts.sha256(path), meta.get("trained_on_validation", False)
        return Checkpoint(state, config, meta["vocab_size"], meta["tokenizer"], sha256, seen)
    except KeyError as error:
        raise InputError(f"{path} lacks {error} in its metadata: run `pgolf train` again") from None
