"""What a fetched export must show before anything trusts it: the fingerprints of its validation split.

Each check has cost somebody a record: a split of 10,000 documents (PR 1854), CaseOps tokens with the standard byte
table (PR 2071), a byte count of another tokenizer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.artifacts import sha256, write_json
from pgolf.data.byte_table import byte_table
from pgolf.data.catalogue import EVAL_LENGTH, Documents, Export
from pgolf.data.hub_files import REPO_MANIFEST
from pgolf.data.published import Published, describe, manifest_path
from pgolf.data.shards import BOS, read_shard
from pgolf.data.sidecar import CASEOPS, check_sidecar, has_case_operators
from pgolf.data.tokenizer import load_tokenizer
from pgolf.errors import InputError

RHO_TOLERANCE = 1e-3
UNUSABLE = "these are not the challenge's shards; take another repository or revision"

Rows = list[tuple[str, str]]
"""What was verified, and the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What was counted in a validation split."""

    documents: int
    """BOS tokens."""

    tokens: int
    """All tokens, BOS included."""

    bytes: int
    """Canonical bytes of all tokens."""

    @property
    def targets(self) -> int:
        """`val_tokens` of the published logs."""
        return (self.tokens - 1) // EVAL_LENGTH * EVAL_LENGTH

    @property
    def tokens_per_byte(self) -> float:
        """rho = targets / bytes; all tokens but the first are targets here."""
        return (self.tokens - 1) / max(1, self.bytes)


def verify(published: Published, export: Export | Documents) -> Rows:
    """Check the content of a complete folder, then write its manifest; InputError, and no manifest, if it is off."""
    if isinstance(export, Documents):
        rows, facts = _verify_documents(published, export)
    else:
        rows, facts = _verify_shards(published, export)
    write_json(manifest_path(published.folder), describe(published, **facts))
    return rows


def _verify_shards(published: Published, export: Export) -> tuple[Rows, dict[str, Any]]:
    folder, tokenizer = published.folder, published.folder / published.tokenizer
    check_tokenizer(export, tokenizer)
    val, sidecar = ([folder / name for name in published.shards(split)] for split in ("val", "val_bytes"))
    found = read_validation(export, val, sidecar, tokenizer)[1]
    facts = {"documents": found.documents, "tokens": found.tokens, "bytes": found.bytes}
    rows = [
        ("tokenizer", f"{tokenizer.name}: {export.vocab_size:,} pieces, transform {export.transform}"),
        ("validation documents", f"{found.documents:,}"),
        ("validation targets", f"{found.targets:,} ({found.tokens:,} tokens)"),
        ("targets per byte", f"{found.tokens_per_byte:.5f} (published {export.tokens_per_byte:.5f})"),
        ("bytes of validation", f"{found.bytes:,} by {'the sidecar' if sidecar else 'the byte table'}"),
        ("training shards", f"{len(published.shards('train')):,}"),
        ("manifest of the repository", _repo_manifest(folder / REPO_MANIFEST, export, found)),
    ]
    return rows, {"transform": export.transform, "validation": facts}


def _verify_documents(published: Published, export: Documents) -> tuple[Rows, dict[str, Any]]:
    sidecar, entry = _object(published.folder / export.sidecar), published.files[export.file]
    if sidecar.get("docs_val") != export.val_documents:
        raise InputError(
            f"{published.folder / export.sidecar} says {sidecar.get('docs_val')} validation documents, the challenge "
            f"has {export.val_documents}: take another repository or revision"
        )
    if sidecar.get("docs_bytes") not in (None, entry["size"]):
        raise InputError(
            f"{published.folder / export.file} has {entry['size']} bytes, its manifest says {sidecar['docs_bytes']}: "
            "they do not belong together; take another repository or revision"
        )
    agrees = "the file's SHA-256" if sidecar.get("docs_sha256") == entry["sha256"] else "not the file's SHA-256"
    rows = [
        (
            "validation documents",
            f"the first {export.val_documents:,} of {sidecar.get('num_docs', 'an unknown number')}",
        ),
        ("docs_sha256 of the manifest", agrees),
    ]
    return rows, {"validation": {"documents": export.val_documents}}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object of a repository."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object: {UNUSABLE}")
    return value


def _repo_manifest(path: Path, export: Export, found: Validation) -> str:
    """Whether the repository's own manifest says what was counted. It is not trusted over the shards, only compared."""
    datasets = _object(path).get("datasets") if path.is_file() else None
    named = [entry for entry in datasets or [] if isinstance(entry, dict) and entry.get("name") == export.dataset]
    stats = named[0].get("stats") if named else None
    if not isinstance(stats, dict):
        return "none that describes the export"
    for key, value in (("docs_val", found.documents), ("tokens_val", found.tokens)):
        if stats.get(key) not in (None, value):
            return f"wrong: it says {key} is {stats[key]}, the shards have {value}"
    return "agrees"


def read_validation(
    export: Export, val: Sequence[Path], sidecar: Sequence[Path], tokenizer: Path
) -> tuple[npt.NDArray[np.uint16], Validation]:
    """The bytes charged to each validation token [n], and what tokens and bytes add up to, all checked."""
    where = str(val[0].parent)
    tokens, counts = token_bytes(val, sidecar, tokenizer)
    found = count_validation(tokens, counts, export, where)
    check_validation(export, found, where)
    if sidecar:
        check_sidecar(load_tokenizer(tokenizer), tokens, counts, export.transform)
    return counts, found


def token_bytes(
    val: Sequence[Path], sidecar: Sequence[Path], tokenizer: Path
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Validation tokens [n] and the bytes charged to each [n]: the sidecar's, or where there is none the byte table's.

    The table refuses a tokenizer with case operators, whose pieces do not tell their bytes.
    """
    tokens = np.concatenate([read_shard(path) for path in val])
    if not sidecar:
        return tokens, byte_table(load_tokenizer(tokenizer)).counts(tokens).astype(np.uint16)
    counts = np.concatenate([read_shard(path) for path in sidecar])
    if len(counts) != len(tokens):
        raise InputError(f"{sidecar[0].parent} has {len(counts)} byte counts for {len(tokens)} validation tokens")
    return tokens, counts


def count_validation(
    tokens: npt.NDArray[np.uint16], counts: npt.NDArray[np.uint16], export: Export, where: str
) -> Validation:
    """Add up a split; InputError for ids outside the vocabulary or a start without BOS."""
    if tokens[0] != BOS:
        raise InputError(f"the validation split in {where} starts with token {tokens[0]}, not with BOS: {UNUSABLE}")
    if int(tokens.max()) >= export.vocab_size:
        raise InputError(f"{where} holds token {tokens.max()}, its vocabulary has {export.vocab_size}: {UNUSABLE}")
    documents = int(np.count_nonzero(tokens == BOS))
    return Validation(documents=documents, tokens=len(tokens), bytes=int(counts.sum(dtype=np.int64)))


def check_validation(export: Export, found: Validation, where: str) -> None:
    """Compare a split with the published figures; InputError names the first that is off."""
    if found.documents != export.val_documents:
        note = " (10,000 is the default of a local preparation script: issue 2127)" * (found.documents == 10_000)
        raise InputError(
            f"{where} has {found.documents:,} validation documents, the challenge's split has "
            f"{export.val_documents:,}{note}: its scores compare with nothing; take another repository or revision"
        )
    if export.val_tokens not in (None, found.tokens) or found.targets != export.val_targets:
        raise InputError(
            f"{where} has {found.tokens:,} validation tokens ({found.targets:,} targets), published are "
            f"{export.val_targets:,} targets: this is another tokenization of the documents"
        )
    if not abs(found.tokens_per_byte - export.tokens_per_byte) <= RHO_TOLERANCE * export.tokens_per_byte:
        raise InputError(
            f"{where} has {found.tokens_per_byte:.5f} targets per byte, expected {export.tokens_per_byte:.5f}: tokens "
            "and byte counts do not belong together (PR 2071)"
        )


def check_tokenizer(export: Export, path: Path) -> None:
    """Vocabulary size, known hash, and case operators where and only where the export has them."""
    processor = load_tokenizer(path)
    if len(processor) != export.vocab_size:
        raise InputError(f"{path} has {len(processor)} pieces, the export has {export.vocab_size}: another tokenizer")
    operators = has_case_operators(processor)
    if operators != (export.transform == CASEOPS):
        kind = "the CaseOps tokenizer" if operators else "a tokenizer without case operators"
        raise InputError(
            f"{path} is {kind}, which does not belong to these shards although the vocabulary is as large (PR 2071): "
            "take the tokenizer of the export"
        )
    if export.tokenizer_sha256 not in (None, actual := sha256(path)):
        raise InputError(f"{path} has SHA-256 {actual}, published is {export.tokenizer_sha256}: another tokenizer")
