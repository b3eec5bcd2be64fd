"""What a submission claims of one run: checked against the files, and given to log, JSON and README alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgolf import artifacts, paths
from pgolf.errors import InputError
from pgolf.params import dotted
from pgolf.runs import MANIFEST, Run
from pgolf.submit.pack_code import unpack_code

UNKNOWN = "not recorded"
"""Stands where an older run did not note something; a claim is never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One run, with the code that ships for all of them."""

    run: Run
    seed: int
    params: Mapping[str, Any]
    """Section -> values, as the packed program holds them."""
    bytes_code: int
    bytes_model: int

    @property
    def bytes_total(self) -> int:
        """What counts against the cap."""
        return self.bytes_code + self.bytes_model

    @property
    def val_bpb(self) -> float:
        """The score to eight decimals, as log and JSON state it."""
        return round(float(self.run.value("evaluate", "val_bpb")), 8)

    @property
    def val_loss(self) -> float:
        """Nats per token to eight decimals."""
        return round(float(self.run.value("evaluate", "val_loss")), 8)

    @property
    def train_ms(self) -> int:
        """Milliseconds of the training loop."""
        return round(1000 * float(self.run.value("train", "train_seconds")))

    @property
    def step_ms(self) -> float:
        """Milliseconds per optimizer step."""
        return round(self.train_ms / max(1, int(self.run.value("train", "steps"))), 2)

    @property
    def calibration(self) -> str:
        """Where the Hessians come from."""
        text = {"train": "training tokens only", "generated": "text that the model wrote, and no other"}
        return text[self.params["calibrate"]["source"]]

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifest of the tokens."""
        found: Mapping[str, Any] = artifacts.read_json(self.run.file(MANIFEST), "tokenize")
        return found

    def version(self, name: str) -> str:
        """`torch`, `cuda`, `python` or `flash_attn`, as the training stage noted it."""
        return str(self.run.metrics["train"].get(name, UNKNOWN))


def gather(runs: list[Run]) -> list[Evidence]:
    """Check that the runs are one configuration under different seeds, and that their files are those they scored.

    InputError names the run and what does not fit.
    """
    if not runs:
        raise InputError("a submission needs at least one run")
    code = runs[0].file(paths.PACKED_CODE).read_bytes()
    files, first = unpack_code(code)
    found = []
    for run in runs:
        if run.metrics.get("train", {}).get("adopted"):
            raise InputError(
                f"run `{run.name}` adopted its weights, and nobody here measured their training: record a run that "
                "trains (`train.adopt.file` null)"
            )
        own_files, params = unpack_code(run.file(paths.PACKED_CODE).read_bytes())
        differing = sorted(_differing(first, params) - {"train.seed"})
        if differing or own_files != files:
            what = f"in {', '.join(differing)}" if differing else "in its code"
            raise InputError(
                f"run `{run.name}` differs from `{runs[0].name}` {what}: a submission is one configuration"
            )
        model = run.file(paths.ARTIFACT)
        if run.value("evaluate", "artifact_sha256") != artifacts.sha256(model):
            raise InputError(f"the score of run `{run.name}` is not that of {model}: run `pgolf evaluate` there again")
        if artifacts.sha256(run.file(paths.TOKENIZER)) != artifacts.sha256(runs[0].file(paths.TOKENIZER)):
            raise InputError(f"run `{run.name}` used another tokenizer than `{runs[0].name}`: a submission has one")
        seed = params["train"]["seed"]
        sizes = {"bytes_code": len(code), "bytes_model": model.stat().st_size}
        found.append(Evidence(run=run, seed=seed, params=params, **sizes))
    if len({each.seed for each in found}) < len(found):
        raise InputError(f"the seeds are {[each.seed for each in found]}: give one run per seed")
    return found


def _differing(first: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    a, b = dotted(first), dotted(other)
    return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
