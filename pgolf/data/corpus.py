"""The tokenize stage: documents -> tokenizer, shards, byte sidecar and manifest.

The manifest is what later stages trust: SHA-256 of the tokenizer and of every shard, counts, and the ratio
`rho = scored tokens / bytes` (targets are all validation tokens but the first), which exposes a tokenizer and a byte
count that do not belong together. Nothing in it depends on time, host or path.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.artifacts import atomic_folder, sha256, write_bytes, write_json
from pgolf.data import caseops
from pgolf.data.byte_table import byte_table
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.documents import document_hash, read_documents
from pgolf.data.shard_writer import ShardWriter
from pgolf.data.sidecar import CASEOPS, NONE, has_case_operators
from pgolf.data.surfaces import encode_counted
from pgolf.data.tokenizer import LONGEST_SENTENCE, encode, load_tokenizer, parse_tokenizer, train_tokenizer
from pgolf.data.tokens import MANIFEST, SCHEMA, VERSION
from pgolf.errors import InputError

BATCH_CHARACTERS = 1 << 21
"""Text encoded per call: large enough for all cores, small enough that its ids, as Python numbers, stay near 50 MB."""

Progress = Callable[[str, int, int], None]
"""Called with (phase, documents done, documents in all); the last is 0, unknown, until a phase is complete.

Phases: `held out`, `tokenizer` (once, at its start), `train`, `val`."""

Counted = Callable[[list[str]], tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]]
"""Documents -> their tokens, each after BOS, and the bytes charged to each token, both [n]."""


class _Tally:
    """Counts the documents of a split while they pass, leaves out those that are held out, and spells the others."""

    def __init__(self, config: TokenizeConfig, held_out: AbstractSet[bytes] = frozenset()) -> None:
        self.held_out = held_out
        self.spell = caseops.encode if config.case_ops else str  # str(text) is text
        self.documents = self.raw_bytes = self.dropped = self.long = 0
        self.hashes = hashlib.sha256()

    def watch(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            digest = document_hash(text)
            if digest in self.held_out:
                self.dropped += 1
                continue
            self.documents += 1
            self.raw_bytes += len(text.encode())
            self.hashes.update(digest)
            spelled = self.spell(text)
            self.long += len(spelled.encode()) > LONGEST_SENTENCE
            yield spelled


def tokenize_corpus(
    data: DataConfig,
    config: TokenizeConfig,
    tokens_dir: Path,
    tokenizer_path: Path,
    progress: Progress | None = None,
) -> dict[str, float | int]:
    """Write `tokenizer_path` and, replaced as a whole, the folder `tokens_dir`; return the stage's metrics.

    Training documents whose text is also a validation document are dropped, from the tokenizer's training too
    (`overlap_documents`). Equal documents and settings give equal bytes. Raises InputError for documents or settings
    that cannot work; nothing is then replaced.
    """
    report = progress or (lambda phase, done, total: None)
    held_out = {document_hash(text) for text in _reported(read_documents(data.val), report, "held out")}
    report("tokenizer", 0, 0)
    model = _tokenizer_model(data, config, held_out)
    processor = parse_tokenizer(model, f"tokenizer {config.model or tokenizer_path}")
    counted = _counted(processor, config)
    with atomic_folder(tokens_dir) as folder:
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "version": VERSION,
            "tokenizer_sha256": hashlib.sha256(model).hexdigest(),
            "vocab_size": len(processor),
            "transform": CASEOPS if config.case_ops else NONE,
            "train": _write_train(data, config, folder, processor, held_out, report),
            **_write_val(data, config, folder, counted, report),
        }
        write_json(folder / MANIFEST, manifest)
    write_bytes(tokenizer_path, model)
    train, val = manifest["train"], manifest["val"]
    return {
        "train_tokens": train["tokens"],
        "val_tokens": val["tokens"],
        "train_documents": train["documents"],
        "val_documents": val["documents"],
        "val_bytes": val["bytes"],
        "val_raw_bytes": val["raw_bytes"],
        "bytes_per_token": 1 / val["tokens_per_byte"],
        "overlap_documents": train["overlap_documents"],
        "tokenizer_skipped_documents": train["tokenizer_skipped_documents"],
        "tokenizer_vocab_size": manifest["vocab_size"],
    }


def _tokenizer_model(data: DataConfig, config: TokenizeConfig, held_out: AbstractSet[bytes]) -> bytes:
    """The published model that the settings name, or one trained on the training documents."""
    if config.model is None:
        return train_tokenizer(_Tally(config, held_out).watch(read_documents(data.train)), config)
    processor = load_tokenizer(Path(config.model))
    pieces = len(processor)
    if pieces != config.vocab_size:
        raise InputError(
            f"`tokenize.model` {config.model!r} has {pieces} pieces, `tokenize.vocab_size` is {config.vocab_size}: "
            f"set `tokenize.vocab_size` to {pieces}"
        )
    if has_case_operators(processor) != config.case_ops:
        raise InputError(
            f"`tokenize.case_ops` is {str(config.case_ops).lower()}, but `tokenize.model` {config.model!r} "
            f"{'lacks' if config.case_ops else 'has'} the case operators: set `tokenize.case_ops` to "
            f"{str(not config.case_ops).lower()} or take another model"
        )
    return Path(config.model).read_bytes()


def _counted(processor: sentencepiece.SentencePieceProcessor, config: TokenizeConfig) -> Counted:
    """How the validation documents become tokens with bytes: by surface under CaseOps, else by the byte table."""
    if config.case_ops:
        return lambda texts: encode_counted(processor, texts)
    table = byte_table(processor)

    def by_table(texts: list[str]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
        tokens = np.concatenate(encode(processor, texts))
        return tokens, table.counts(tokens).astype(np.uint16)  # starts with BOS: nothing depends on what came before

    return by_table


def _write_train(
    data: DataConfig,
    config: TokenizeConfig,
    folder: Path,
    processor: sentencepiece.SentencePieceProcessor,
    held_out: AbstractSet[bytes],
    report: Progress,
) -> dict[str, Any]:
    """Write the training shards and return their section of the manifest."""
    tally = _Tally(config, held_out)
    texts = _reported(tally.watch(read_documents(data.train)), report, "train")
    with ShardWriter(folder, "train", config.shard_tokens) as shards:
        for batch in _ahead(_batches(texts)):
            shards.append(np.concatenate(encode(processor, batch)))
    if not tally.documents:
        raise InputError(
            f"`data.train` is {data.train!r}, which holds no documents ({tally.dropped} were dropped because they are "
            "in `data.val`): give training documents"
        )
    skipped = tally.long if config.model is None else 0
    return {**_listed(tally, shards), "overlap_documents": tally.dropped, "tokenizer_skipped_documents": skipped}


def _write_val(
    data: DataConfig,
    config: TokenizeConfig,
    folder: Path,
    counted: Counted,
    report: Progress,
) -> dict[str, Any]:
    """Write the validation shards and the byte sidecar and return their sections of the manifest."""
    tally, total = _Tally(config), 0
    texts = _reported(tally.watch(read_documents(data.val)), report, "val")
    with (
        ShardWriter(folder, "val", config.shard_tokens) as shards,
        ShardWriter(folder, "val_bytes", config.shard_tokens) as sidecar,
    ):
        for batch in _ahead(_batches(texts)):
            tokens, counts = counted(batch)
            shards.append(tokens)
            sidecar.append(counts)
            total += int(counts.sum(dtype=np.int64))
    if total == 0:
        raise InputError(
            f"`data.val` is {data.val!r}, whose {tally.documents} documents hold no text: give validation documents"
        )
    val = {
        **_listed(tally, shards),
        "bytes": total,
        "raw_bytes": tally.raw_bytes,
        "tokens_per_byte": (shards.tokens - 1) / total,
    }
    return {"val": val, "val_bytes": {"shards": _shards(sidecar), "tokens": sidecar.tokens}}


def _listed(tally: _Tally, shards: ShardWriter) -> dict[str, Any]:
    """What the manifest says of every split."""
    return {
        "documents": tally.documents,
        "documents_sha256": tally.hashes.hexdigest(),
        "tokens": shards.tokens,
        "shards": _shards(shards),
    }


def _shards(shards: ShardWriter) -> list[dict[str, Any]]:
    """Name, hash and length of each file."""
    return [{"name": path.name, "sha256": sha256(path), "tokens": count} for path, count in shards.files]


def _reported(texts: Iterable[str], report: Progress, phase: str) -> Iterator[str]:
    """Pass documents through, report every 256th, and at the end the total."""
    done = 0
    for done, text in enumerate(texts, 1):
        yield text
        if done % 256 == 0:
            report(phase, done, 0)
    report(phase, done, done)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents with about BATCH_CHARACTERS together."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ahead(batches: Iterator[list[str]]) -> Iterator[list[str]]:
    """Read and spell the next batch in a thread while the library's threads encode this one."""
    with ThreadPoolExecutor(1) as thread:
        later = thread.submit(next, batches, None)
        while (batch := later.result()) is not None:
            later = thread.submit(next, batches, None)
            yield batch
