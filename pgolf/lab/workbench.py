"""What every experiment on one checkpoint shares: weights, Hessians and validation tokens that belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pgolf import artifacts, paths
from pgolf.checkpoint_file import Checkpoint, load_checkpoint
from pgolf.config import build
from pgolf.data.tokens import Tokens, open_tokens
from pgolf.device import pick_device
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import Score
from pgolf.model.gpt import GPT
from pgolf.quant.calibrate import calibrate
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.state import split_key
from pgolf.quant.ternary import unpacked
from pgolf.sweep.measure import plain_score


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """One checkpoint on one device."""

    checkpoint: Checkpoint
    hessians: Mapping[str, Tensor]
    calibration: CalibrateConfig
    """What the Hessians were collected by."""
    tokens: Tokens
    device: torch.device
    dtype: torch.dtype

    def model(self, state: Mapping[str, Tensor]) -> GPT:
        """The model with these parameters, on the device."""
        with torch.device("meta"):
            model = GPT(self.checkpoint.config, self.checkpoint.vocab_size, self.dtype)
        model.load_state_dict(dict(state), assign=True)
        return model.to(self.device)

    def hessians_of(self, calibration: CalibrateConfig) -> Mapping[str, Tensor]:
        """The Hessians here, or where `calibration` is another one, those that it collects now."""
        if calibration == self.calibration:
            return self.hessians
        return calibrate(self.model(self.checkpoint.state), calibration, self.tokens.train)

    def score(self, state: Mapping[str, Tensor], config: EvaluateConfig) -> Score:
        """Score of these parameters in windows that do not overlap; the rest as for `plain_score`."""
        return plain_score(self.model(state), config, self.tokens)


def open_workbench(model: Path = paths.MODEL, hessians: Path = paths.HESSIANS) -> Workbench:
    """Read the artifacts of `train` and `calibrate` and the tokens; InputError where they do not belong together."""
    checkpoint = load_checkpoint(model)
    found, meta = artifacts.load(hessians, schema="pgolf.hessians", made_by="calibrate")
    if meta["inputs"]["checkpoint"] != checkpoint.sha256:
        raise InputError(f"{hessians} belongs to another checkpoint: run `pgolf calibrate` again")
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    tokens.check_model(model, checkpoint.vocab_size, checkpoint.tokenizer)
    return Workbench(checkpoint, found, build(CalibrateConfig, meta["params"], "calibrate"), tokens, *pick_device())


def recorded_scheme(checkpoint: Checkpoint, path: Path = paths.QUANTIZED) -> QuantizeConfig:
    """The scheme of the artifact of `quantize`, which must be of this checkpoint."""
    _, meta = artifacts.load(path, schema="pgolf.quantized", made_by="quantize")
    if meta["inputs"].get("checkpoint") != checkpoint.sha256:
        raise InputError(f"{path} was not quantized from the weights here: run `pgolf quantize` again")
    return build(QuantizeConfig, meta["params"]["quantize"], "quantize")


def quantized_codes(place: Path) -> dict[str, Tensor]:
    """Codes by matrix of a run's folder, or of a file of `quantize`."""
    path = place / paths.QUANTIZED if place.is_dir() else place
    tensors, _ = artifacts.load(path, schema="pgolf.quantized", made_by="quantize")
    return codes_of(tensors)


def codes_of(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codes int8 [m, n] by matrix, of stored tensors (`pgolf.quant.state`)."""
    matrices = [name for name, kind in map(split_key, stored) if kind == ".q"]
    codes = {name: (stored[f"{name}.q"], len(stored[f"{name}.scale"])) for name in matrices}
    return {name: code if code.ndim == 2 else unpacked(code, rows) for name, (code, rows) in codes.items()}
