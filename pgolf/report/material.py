"""What a report is made of: everything that a run left behind, read when a picture asks for it.

Every attribute raises InputError where the run does not have the file, so that a picture that cannot be drawn says why.
"""

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from torch import Tensor

from pgolf import artifacts, paths
from pgolf.data.config import PUBLISHED
from pgolf.data.documents import read_sources
from pgolf.data.shards import BOS, read_shard
from pgolf.errors import InputError
from pgolf.report.breakdown import Scored
from pgolf.report.curves import first_above
from pgolf.report.sizes import streams
from pgolf.runs import MANIFEST, Run, same_score


class Material:
    """One run, lazily read."""

    def __init__(self, run: Run, documents: Path | None) -> None:
        """`documents` is the file of `data.val`, where it is known."""
        self.run, self.documents = run, documents

    @functools.cached_property
    def _trace(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        tensors, meta = artifacts.load(self.run.file(paths.TRACE), schema="pgolf.trace", made_by="train")
        return {name: tensor.float().numpy() for name, tensor in tensors.items()}, meta

    @property
    def trace(self) -> dict[str, NDArray[Any]]:
        """Series of the training trace, at least two entries each."""
        if len(self.curve["step"]) < 2:
            raise InputError(
                f"run `{self.run.name}` was adopted, or stopped after one step: nothing happened over time"
            )
        return self._trace[0]

    @property
    def curve(self) -> dict[str, list[float]]:
        """Step, seconds, learning rate and loss, however few there are."""
        return {name: self._trace[0][name].tolist() for name in ("step", "seconds", "lr", "loss")}

    @property
    def loop_at(self) -> float | None:
        """Second of training at which recurrence is switched on; None where the model has none, or never."""
        trace, params = self.trace, self._trace[1]["params"]
        train = params["train"]
        if params["model"]["loop_runs"] < 2 and params["model"]["stack_runs"] < 2:
            return None
        budget = train["steps"] or train["seconds"] - train["reserve_seconds"]
        axis = trace["step"] if train["steps"] else trace["seconds"]
        cost = train.get("loop_cost", 1.0) if train["steps"] else 1.0
        start = train["loop_at"] * cost / (1 + train["loop_at"] * (cost - 1)) * budget
        return first_above(axis.tolist(), start, trace["seconds"].tolist()) if axis[-1] > start else None

    def seen(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Seconds of training, and what the looks at the model saw then (`pgolf.train.openings`).

        InputError where this model has nothing of that kind, or was looked at less than twice.
        """
        seconds = self.trace.get("observed", np.empty(0))
        if len(seconds) < 2:
            raise InputError(f"run `{self.run.name}` was too short, or is too old, to have been looked at over time")
        if name not in self.trace:
            raise InputError(f"run `{self.run.name}` has no `{name}` in its trace: its model has no such gates")
        return seconds, self.trace[name]

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """The weights before quantization."""
        return artifacts.load(self.run.file(paths.MODEL), schema="pgolf.checkpoint", made_by="train")[0]

    @functools.cached_property
    def errors(self) -> dict[str, float]:
        """Relative error of every quantized tensor."""
        meta = artifacts.load(self.run.file(paths.QUANTIZED), schema="pgolf.quantized", made_by="quantize")[1]
        if "errors" not in meta:
            raise InputError(f"run `{self.run.name}` has no errors by tensor: its quantized weights were adopted")
        return dict(meta["errors"])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the streams of the model."""
        if "compress" not in self.run.metrics:
            raise InputError(f"run `{self.run.name}` has no metrics of `compress`: run `pgolf compress` there")
        return streams(self.run.metrics["compress"])

    @functools.cached_property
    def _losses(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = artifacts.load(self.run.file(paths.LOSSES), schema="pgolf.losses", made_by="evaluate")
        if not same_score(self.run, meta):
            raise InputError(f"the saved losses of run `{self.run.name}` are not those of its score: evaluate again")
        return tensors, meta

    @functools.cached_property
    def scored(self) -> Scored:
        """Validation tokens with their bytes and losses, which must be of one evaluation."""
        tensors, meta = self._losses
        if artifacts.sha256(self.run.file(MANIFEST)) != meta["inputs"]["manifest"]:
            raise InputError(f"the tokens of run `{self.run.name}` are not those that were scored: evaluate again")
        tokens, sizes = (self._shards(prefix) for prefix in ("fineweb_val_0", "fineweb_val_bytes_"))
        return Scored(tokens=tokens, sizes=sizes, losses=tensors["losses"].numpy())

    def _shards(self, prefix: str) -> NDArray[np.uint16]:
        names = sorted(path for path in self.run.files if path.parent == paths.TOKENS and path.name.startswith(prefix))
        if not names:
            raise InputError(f"run `{self.run.name}` has no validation shards here: run it in its folder")
        return np.concatenate([read_shard(self.run.files[name]) for name in names])

    @property
    def unadapted(self) -> NDArray[np.float32]:
        """Losses of the same windows without test-time training and cache."""
        if "unadapted" not in self._losses[0]:
            raise InputError(
                f"run `{self.run.name}` has no test-time training and no cache, or nobody measured their "
                "gain (`evaluate.ttt`, `evaluate.cache`, `evaluate.measure_gain`)"
            )
        found: NDArray[np.float32] = self._losses[0]["unadapted"].numpy()
        return found

    @property
    def clock(self) -> NDArray[np.float64] | None:
        """Seconds of evaluation when each target had its loss [n - 1], by documents; None where nobody noted it.

        InputError where the table of documents is of another evaluation than the losses.
        """
        if paths.PACE not in self.run.files:
            return None
        table = artifacts.read_json(self.run.files[paths.PACE], "evaluate").get("documents", {"seconds": [None]})
        if None in table["seconds"]:
            return None
        seconds: NDArray[np.float64] = np.repeat(np.array(table["seconds"], np.float64), table["targets"])
        if len(seconds) != len(self.scored.losses):
            raise InputError(f"{paths.PACE} of run `{self.run.name}` is of other text than its losses: evaluate again")
        return seconds

    @functools.cached_property
    def sources(self) -> list[str]:
        """The source of every validation document."""
        if self.documents is None or self.documents.name == PUBLISHED:
            raise InputError(f"run `{self.run.name}` was not made from a file of documents: sources are not known")
        documents = int(np.count_nonzero(self.scored.tokens == BOS))
        found = list(itertools.islice(read_sources(self.documents), documents + 1))
        if len(found) != documents:
            raise InputError(f"{self.documents} does not hold the {documents} documents that `{self.run.name}` scored")
        if None in found:
            raise InputError(f"the documents of {self.documents} name no `source`")
        return [source for source in found if source is not None]

    @functools.cached_property
    def processor(self) -> sentencepiece.SentencePieceProcessor:
        """The tokenizer."""
        return sentencepiece.SentencePieceProcessor(model_file=str(self.run.file(paths.TOKENIZER)))
