"""The books of a run of ours: every number counted again from the files, by other code than that which wrote it."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf import artifacts, paths
from pgolf.audit.verdict import Finding, judge
from pgolf.data.shards import BOS, read_shard
from pgolf.data.tokens import CHECKED_TOKENS, Tokens
from pgolf.errors import InputError
from pgolf.rules import Rules
from pgolf.submit.gate import gate

SHARE = 1e-3
"""Share of validation documents in training above which it is no accident of short texts."""
DOCUMENT = 8
"""Shorter documents, in tokens, are not compared: equal ones say nothing."""


def documents(tokens: NDArray[np.uint16]) -> Iterator[bytes]:
    """SHA-256 of the tokens of each document of a stream that starts with BOS."""
    edges = [*np.flatnonzero(tokens == BOS).tolist(), len(tokens)]
    for first, end in itertools.pairwise(edges):
        if end - first >= DOCUMENT:
            yield hashlib.sha256(tokens[first:end].astype("<u2").tobytes()).digest()


def check_overlap(val: NDArray[np.uint16], train: Sequence[Path]) -> Finding:
    """Validation documents among the training documents, by the hash of their tokens."""
    source = "issue 2127: 15 of 34 PRs had trained on validation documents"
    held_out, seen, read = set(documents(val)), set(), 0
    opened = 0
    for path in train:
        if read >= CHECKED_TOKENS:
            break
        shard = read_shard(path)
        read, opened = read + len(shard), opened + 1
        seen.update(held_out.intersection(documents(shard)))
    share = len(seen) / max(1, len(held_out))
    text = f"{len(seen):,} of {len(held_out):,} validation documents are in {read:,} training tokens"
    if opened < len(train):
        text += f", shards not read: {len(train) - opened}"
    right = False if share > SHARE else None if seen or opened < len(train) else True
    return judge("leak.overlap", right, text, source)


def check_score(losses: NDArray[np.float32], tokens: Tokens, inputs: Mapping[str, str]) -> list[Finding]:
    """The reported score from the saved losses, and that they belong to these files."""
    metrics = artifacts.read_json(paths.metrics("evaluate"), "evaluate")
    charged = int(tokens.val_bytes[1:].sum(dtype=np.int64))
    nats = float(losses.sum(dtype=np.float64))
    actual = {
        "val_loss": nats / max(1, len(losses)), "val_bpb": nats / math.log(2) / max(1, charged),
        "scored_tokens": len(losses), "scored_bytes": charged,
    }  # fmt: skip
    wrong = [
        f"{key} {metrics.get(key)!r}, again {value!r}"
        for key, value in actual.items()
        if not isinstance(metrics.get(key), int | float) or not math.isclose(metrics[key], value, rel_tol=1e-9)
    ]
    text = "; ".join(wrong) or f"{actual['val_bpb']:.6f} BPB over {len(losses):,} targets and {charged:,} bytes"
    files = {"artifact": paths.ARTIFACT, "manifest": paths.TOKENS / "manifest.json"}
    stale = [name for name, path in files.items() if inputs.get(name) != artifacts.sha256(path)]
    return [
        judge("score.sum", not wrong, text, "BPB = sum of nats / ln 2 / bytes; PR 2071: claims that no log backed"),
        judge("score.inputs", not stale, f"losses are of another {', '.join(stale)}" if stale else "hashes agree",
              "what was scored is what ships"),
    ]  # fmt: skip


def check_gates(rules: Rules) -> list[Finding]:
    """Sizes from the files, and both clocks from the ledger of the metrics."""
    stages = ("tokenize", "train", "calibrate", "evaluate")
    metrics = {stage: artifacts.read_json(paths.metrics(stage), stage) for stage in stages}
    model = artifacts.require(paths.ARTIFACT, "compress").stat().st_size
    code = artifacts.require(paths.PACKED_CODE, "verify-size").stat().st_size
    report = gate(metrics, model, code, rules, None)
    names = {
        "size": ("size.cap", rules.artifact.source), "training_clock": ("clock.train", rules.train_clock.source),
        "evaluation_clock": ("clock.evaluate", rules.evaluation_clock.source),
        "scored_once": ("tokens.val", "every target of the stream"),
        "trained_on_validation": ("train.validation", "rulings on PR 1376, 1485, 1517: trained before it was scored"),
    }  # fmt: skip
    verdicts: dict[str, bool | None] = {"pass": True, "fail": False}
    said = {
        "training_clock": f", {_seconds(metrics['train'], 'train')} of steps and "
        f"{_seconds(metrics['calibrate'], 'calibrate')} of calibration, on {metrics['train'].get('hardware')}",
        "evaluation_clock": f", on {metrics['evaluate'].get('hardware')}",
    }
    found = []
    for row in report.rows:
        actual = "unknown" if row.actual is None else f"{row.actual:,.6g}" if row.name in said else f"{row.actual:,}"
        text = f"{actual} of {row.limit:,}{said.get(row.name, '')}"
        text += "" if row.verdict in verdicts else f": {row.verdict}"
        found.append(judge(names[row.name][0], verdicts.get(row.verdict), text, names[row.name][1]))
    return [*found, _metrics_agree(model, code)]


def _seconds(metrics: Mapping[str, Any], stage: str) -> str:
    seconds = metrics.get(f"{stage}_seconds")
    return "unknown seconds" if seconds is None else f"{seconds:.3f} s"


def _metrics_agree(model: int, code: int) -> Finding:
    said: dict[str, Any] = artifacts.read_json(paths.metrics("verify-size"), "verify-size")
    right = (said.get("bytes_model"), said.get("bytes_code")) == (model, code)
    text = f"code {code:,} + model {model:,}; metrics say {said.get('bytes_code')} + {said.get('bytes_model')}"
    return judge("size.sum", right, text, "bytes are those of the files")


def check_code(root: Path) -> Finding:
    """The packed program is made from the readable source that lies here."""
    from pgolf.submit.pack_code import packed_from

    source = "issue 1594: the log was produced by other code than the committed"
    path = artifacts.require(paths.PACKED_CODE, "verify-size")
    try:
        files = packed_from(root, path.read_bytes())
    except InputError as error:
        return judge("size.code", None, f"{path}: {error}", source)
    text = "packed from other source than the one here" if files is None else f"packed from the {len(files)} files here"
    return judge("size.code", None if files is None else True, text, source)
