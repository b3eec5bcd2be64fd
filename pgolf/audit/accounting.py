"""The books of a run of ours: every number counted again from the files, by other code than that which wrote it."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from pgolf import artifacts, paths
from pgolf.audit.verdict import Finding, judge
from pgolf.data.accounting import EXPORTS
from pgolf.data.byte_table import SPACE
from pgolf.data.documents import read_documents
from pgolf.data.shards import BOS, read_shard
from pgolf.data.sidecar import CASEOPS
from pgolf.data.tokens import CHECKED_TOKENS, Tokens
from pgolf.errors import InputError
from pgolf.rules import Rules
from pgolf.submit.gate import gate

SHARE = 1e-3
"""Share of validation documents in training above which it is no accident of short texts; tolerance of two counts."""
DOCUMENT = 8
"""Shorter documents, in tokens, are not compared: equal ones say nothing."""


def recount(processor: sentencepiece.SentencePieceProcessor, tokens: NDArray[np.uint16]) -> int:
    """UTF-8 bytes that the pieces of a stream spell, a space at the start of a document not counted."""
    sizes, spaced = np.zeros(len(processor), np.int64), np.zeros(len(processor), np.bool_)
    for index in range(len(processor)):
        if processor.is_byte(index):
            sizes[index] = 1
        elif not (processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index)):
            piece = processor.id_to_piece(index)
            sizes[index], spaced[index] = len(piece.replace(SPACE, " ").encode()), piece.startswith(SPACE)
    first = tokens[1:][tokens[:-1] == BOS]
    return int(sizes[tokens].sum()) - int(spaced[first].sum())


def check_bytes(tokens: Tokens, processor: sentencepiece.SentencePieceProcessor, val: str) -> list[Finding]:
    """The denominator: the sidecar against the pieces, and the documents' own bytes beside it."""
    charged = int(tokens.val_bytes[1:].sum(dtype=np.int64))
    transform = tokens.manifest.get("transform", "none")
    spelled = recount(processor, tokens.val)
    right: bool | None
    if transform == CASEOPS:
        operators = np.isin(tokens.val, np.arange(4, 8))
        spelled -= 3 * int(np.count_nonzero(operators))  # each is three bytes of UTF-8 that stand for no text
        off = abs(spelled / charged - 1)  # the sidecar counts surfaces: lines and characters that pieces normalise
        right = True if off <= SHARE else None if off <= 30 * SHARE else False
        how = "of the pieces without operators"
    else:
        right, how = spelled == charged, "of the pieces"
    found = [judge("bytes.recount", right, f"{charged:,} bytes charged, {spelled:,} {how}", "A.7; PR 2071, PR 1734")]
    return [*found, _raw(tokens, charged, val), _published(tokens)]


def _raw(tokens: Tokens, charged: int, val: str) -> Finding:
    source = "A.7: canonical and raw bytes differ by 0.004 % on FineWeb"
    path = Path(val)
    if tokens.val_raw_bytes is None or not path.is_file():
        return judge("bytes.raw", None, "the validation documents are not here: only canonical bytes", source)
    raw, documents = 0, 0
    for text in read_documents(path):
        raw, documents = raw + len(text.encode()), documents + 1
    right = raw == tokens.val_raw_bytes and documents == tokens.val_documents
    text = f"{documents:,} documents, {raw:,} raw bytes, {charged / raw - 1:+.4%} charged"
    return judge("bytes.raw", right, text, source)


def _published(tokens: Tokens) -> Finding:
    """The fingerprint of a published export; other tokens are somebody's own."""
    source = "catalogue of published exports: tokens, documents and rho of each"
    name = next((n for n, e in EXPORTS.items() if e.tokenizer_sha256 == tokens.tokenizer_sha256), None)
    seen = f"rho {tokens.tokens_per_byte:.5f}, {len(tokens.val):,} tokens, {tokens.val_documents:,} documents"
    if name is None:
        return judge("bytes.rho", None, f"{seen}: of no published tokenizer, so not comparable with records", source)
    export = EXPORTS[name]
    right = tokens.val_documents == export.val_documents and (
        abs(tokens.tokens_per_byte / export.tokens_per_byte - 1) <= SHARE
        and export.val_tokens in (None, len(tokens.val))
    )
    return judge("bytes.rho", right, f"{seen}: {name} has {export.tokens_per_byte:.5f}, {export.val_tokens}", source)


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
    for path in train:
        if read >= CHECKED_TOKENS:
            break
        shard = read_shard(path)
        read += len(shard)
        seen.update(held_out.intersection(documents(shard)))
    share = len(seen) / max(1, len(held_out))
    text = f"{len(seen):,} of {len(held_out):,} validation documents are in {read:,} training tokens"
    return judge("leak.overlap", False if share > SHARE else None if seen else True, text, source)


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
    }  # fmt: skip
    verdicts: dict[str, bool | None] = {"pass": True, "fail": False}
    found = [
        judge(
            names[row.name][0],
            verdicts.get(row.verdict),
            f"{'unknown' if row.actual is None else f'{row.actual:,.6g}'} of {row.limit:,} ({row.verdict})",
            names[row.name][1],
        )
        for row in report.rows
    ]
    return [*found, _metrics_agree(model, code)]


def _metrics_agree(model: int, code: int) -> Finding:
    said: dict[str, Any] = artifacts.read_json(paths.metrics("verify-size"), "verify-size")
    right = (said.get("bytes_model"), said.get("bytes_code")) == (model, code)
    text = f"code {code:,} + model {model:,}; metrics say {said.get('bytes_code')} + {said.get('bytes_model')}"
    return judge("size.sum", right, text, "bytes are those of the files")


def check_code(root: Path) -> Finding:
    """The packed program is the readable source that lies here, minified."""
    from pgolf.submit.pack_code import minify, unpack_code

    source = "issue 1594: the log was produced by other code than the committed"
    try:
        packed, _ = unpack_code(artifacts.require(paths.PACKED_CODE, "verify-size").read_bytes())
    except (AssertionError, ValueError) as error:
        raise InputError(f"{paths.PACKED_CODE} is no packed program ({error}): run `pgolf verify-size`") from None
    changed = [
        name for name, text in packed.items()
        if not (root / name).is_file() or minify((root / name).read_text("utf-8"), name) != text
    ]  # fmt: skip
    text = f"of other source than here: {', '.join(changed)}" if changed else f"{len(packed)} modules agree"
    return judge("size.code", None if changed else True, text, source)
