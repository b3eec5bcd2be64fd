"""Resumable states in scratch/, never a stage output: DVC deletes outputs before a run, `persist` disables its cache.

The folder's name is the digest of everything that determines the run, so that a state is only ever continued by the
run that wrote it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf import artifacts, ranks
from pgolf.config import digest
from pgolf.errors import InputError
from pgolf.train.recorder import Snapshot

SCHEMA = "pgolf.resume"


class Checkpoints:
    """The resumable state of one run."""

    def __init__(self, scratch: Path, identity: Mapping[str, Any]) -> None:
        """`identity`: resolved params, data hashes and seed; canonical JSON of it names the folder."""
        self.folder = scratch / f"train-{digest(identity)[:16]}"
        self.path = self.folder / "state.safetensors"

    def load(self) -> Snapshot | None:
        """The last saved state, or None; a damaged one is an InputError that says what to delete.

        All processes must find the same: it may have been saved by another number of them.
        """
        found = artifacts.sha256(self.path) if self.path.exists() else None
        if len(set(ranks.collect((self.folder.name, found)))) > 1:
            raise InputError(
                "the processes do not have the same parameters, tokens or saved state in scratch/: "
                "give all nodes one shared working folder, or equal copies of it"
            )
        if found is None:
            return None
        try:
            tensors, meta = artifacts.load(self.path, schema=SCHEMA, made_by="train")
        except InputError as error:
            raise InputError(f"cannot resume ({error}); delete {self.folder} to start over") from None
        return Snapshot(meta["params"]["step"], meta["params"]["seconds"], tensors)

    def save(self, snapshot: Snapshot) -> None:
        """Replace the state, atomically."""
        progress = {"step": snapshot.step, "seconds": snapshot.seconds}
        artifacts.save(self.path, snapshot.tensors, schema=SCHEMA, stage="train", params=progress, inputs={})

    def clear(self) -> None:
        """Remove the state of a finished run."""
        shutil.rmtree(self.folder, ignore_errors=True)
