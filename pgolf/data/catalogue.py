"""Which exports of the challenge's FineWeb selection are published where, and what their validation split must give.

Every standard export tokenizes the same documents in the same order: the first 50,000 are validation, the rest is
training (data/README.md of the challenge). So counts and the ratio `rho = targets / bytes` identify a split, and a
mix-up of tokenizer, shards and byte counts shows (PR 2071's 1.0069 was 1.0970).
"""

from dataclasses import dataclass

from pgolf.config import suggest
from pgolf.data.sidecar import CASEOPS, NONE
from pgolf.errors import InputError

VAL_DOCUMENTS = 50_000
"""Documents of the validation split; a local preparation script of the challenge defaults to 10,000 (issue 2127)."""

TRAIN_SHARDS = 80
"""Training shards fetched without `--train-shards`, 8e9 tokens: the official downloader's number."""

EVAL_LENGTH = 2048
"""Context length for which the logs' `val_tokens` are given: the targets are cut to a multiple of it."""

LUT_BYTES = 151_080_891
"""Bytes of the validation documents as a standard tokenizer's byte table counts them (PR 1804; the same for all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """One tokenization: token shards, their SentencePiece model and, for a transformed text, a byte sidecar."""

    repo: str
    """Dataset repository, owner/name."""

    dataset: str
    """Name of the folder that holds the shards."""

    tokenizer: str
    """File name of the SentencePiece model."""

    tokenizer_sha256: str | None = None
    """SHA-256 of that file, where it is known."""

    vocab_size: int
    """Pieces of the tokenizer."""

    transform: str = NONE
    """What was done to the text before: CaseOps (PR 1729), whose bytes only the sidecar knows, or nothing."""

    val_documents: int = VAL_DOCUMENTS
    """Validation documents: BOS tokens in the validation shards."""

    val_tokens: int | None = None
    """Tokens of the validation shards, where a source gives the exact number."""

    val_targets: int
    """`val_tokens` of the published logs: (tokens - 1) cut to a multiple of 2,048."""

    tokens_per_byte: float
    """rho: targets over canonical bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The document list itself, with the manifest beside it that says where validation ends."""

    repo: str
    """Dataset repository, owner/name."""

    file: str = "docs_selected.jsonl"
    """One object with the key `text` a line, 48 GB."""

    sidecar: str = "docs_selected.source_manifest.json"
    """Its manifest: `num_docs`, `docs_val`, `docs_sha256`, `docs_bytes`."""

    val_documents: int = VAL_DOCUMENTS
    """Documents at the start of the file that are validation."""


def _standard(size: int, repo: str, val_targets: int, val_tokens: int | None, sha256: str | None = None) -> Export:
    """A standard tokenization of `size` pieces, all of which share the byte count."""
    return Export(
        repo=repo,
        dataset=f"fineweb10B_sp{size}",
        tokenizer=f"fineweb_{size}_bpe.model",
        tokenizer_sha256=sha256,
        vocab_size=size,
        val_tokens=val_tokens,
        val_targets=val_targets,
        tokens_per_byte=(val_tokens - 1 if val_tokens else val_targets) / LUT_BYTES,
    )


CATALOGUE: dict[str, Export | Documents] = {
    "sp1024": _standard(1024, "willdepueoai/parameter-golf", 62_021_632, 62_021_846),
    "sp4096": _standard(4096, "kevclark/parameter-golf", 45_508_608, None),
    "sp8192": _standard(
        8192,
        "kevclark/parameter-golf",
        40_540_160,
        40_540_803,
        "4e979c92754cc9d7bdebd9dfe5edf3fc0b41b38714b394e4297fa851e3afd516",
    ),
    "sp8192-caseops": Export(
        repo="romeerp/parameter-golf-caseops-v1",
        dataset="fineweb10B_sp8192_lossless_caps_caseops_v1_reserved",
        tokenizer="fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model",
        tokenizer_sha256="97754754561f20def5edd99765ca0668f880bd94e67316d54aa10ab25f45cc4d",
        vocab_size=8192,
        transform=CASEOPS,
        val_tokens=47_853_344,
        val_targets=47_851_520,
        tokens_per_byte=47_851_520 / 151_074_499,  # the sidecar's bytes of those targets
    ),
    "documents": Documents(repo="willdepueoai/parameter-golf"),
}
"""Name -> source. The counts come from published logs; sp4096's exact number of tokens is in none of them."""


def find(name: str) -> Export | Documents:
    """The entry of a name; InputError names the closest one."""
    if name not in CATALOGUE:
        raise InputError(f"`{name}` is not a published export{suggest(name, CATALOGUE)}")
    return CATALOGUE[name]
