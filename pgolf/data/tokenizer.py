"""The challenge's SentencePiece tokenizer: byte-pair encoding with byte fallback.

Ids 0 to 3 are pad, BOS, EOS, unknown; with CaseOps 4 to 7 the case operators; then the 256 bytes, then the learned
pieces. A document becomes `[BOS] + encode(text)`, without EOS; with CaseOps all functions take transformed text.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from pgolf.data.byte_table import CASE_OPERATORS
from pgolf.data.config import TokenizeConfig
from pgolf.data.shards import BOS
from pgolf.errors import InputError

OPTIONS: dict[str, Any] = {
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": BOS,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
    "minloglevel": 2,  # errors only; not stored in the model. The thread count is, so it keeps the library's default.
}


LONGEST_SENTENCE = 4192
"""Bytes; the trainer skips longer documents without a word (the library's default, which the challenge keeps)."""


def train_tokenizer(texts: Iterable[str], config: TokenizeConfig) -> bytes:
    """Train on documents and return the serialized model; equal input gives equal bytes.

    Raises InputError when the text cannot fill `config.vocab_size` or needs more characters than that.
    """
    writer, failures = io.BytesIO(), []
    # A user-defined symbol never merges with its neighbours.
    options = {**OPTIONS, "user_defined_symbols": list(CASE_OPERATORS)} if config.case_ops else OPTIONS

    def sentences() -> Iterator[str]:
        # The library would turn an error of the iterator into a RuntimeError with a foreign traceback as its text.
        try:
            for text in islice(texts, config.tokenizer_train_docs):
                if sentence := text.replace("\0", " ").strip():
                    yield sentence
        except Exception as error:
            failures.append(error)

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(), model_writer=writer, vocab_size=config.vocab_size, **options
        )
    except RuntimeError as error:
        if not failures:
            raise InputError(_training_failed(str(error), config)) from None
    if failures:
        raise failures[0]
    model = writer.getvalue()
    # Without the hard limit the trainer stops early, and says nothing, when no pair is left to merge.
    pieces = len(parse_tokenizer(model, "the trained tokenizer"))
    if pieces != config.vocab_size:
        raise InputError(
            f"`tokenize.vocab_size` is {config.vocab_size}, but the training documents give only {pieces} pieces: "
            f"lower it to {pieces} or give more documents"
        )
    return model


def _training_failed(reason: str, config: TokenizeConfig) -> str:
    """What a user can do about the trainer's error."""
    if "required_chars" in reason:
        return (
            f"`tokenize.vocab_size` is {config.vocab_size}, less than the characters of the training documents need: "
            f"raise it ({reason.rsplit(']', 1)[-1].strip()})"
        )
    if "sentences_.empty()" in reason:
        return (
            "no training document can train the tokenizer: the trainer skips empty ones and those over "
            f"{LONGEST_SENTENCE} bytes; split long ones, give more documents in `data.train`, or a published tokenizer "
            "in `tokenize.model`"
        )
    return f"training the tokenizer failed ({reason}): check the documents in `data.train`"


def parse_tokenizer(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    """The processor of a serialized model; `name` is what messages call it.

    Raises InputError for damaged bytes, for a model whose BOS is not id 1, which every loader relies on, and for one
    that folds capitals, which cannot be recovered (issue 1604; CaseOps keeps them).
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        intact = bool(model) and processor.LoadFromSerializedProto(model)
    except RuntimeError:
        intact = False
    if not intact:
        raise InputError(f"{name} is not a SentencePiece model or is damaged: run `pgolf tokenize`, or fetch it again")
    if processor.bos_id() != BOS:
        raise InputError(
            f"{name} has BOS id {processor.bos_id()}, the challenge's shards have {BOS}: use another model"
        )
    if processor.normalize("A") != "A":
        raise InputError(
            f"{name} turns `A` into `{processor.normalize('A')}`: case folding loses text that counts; use a model "
            "without it, or `tokenize.case_ops` with a CaseOps model"
        )
    return processor


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Read a model file; InputError when it is missing, damaged or has another BOS id."""
    if not path.is_file():
        raise InputError(f"tokenizer {path} is missing: run `pgolf tokenize` first, or correct `tokenize.model`")
    return parse_tokenizer(path.read_bytes(), f"tokenizer {path}")


def encode(processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str]) -> list[npt.NDArray[np.uint16]]:
    """Token ids of each document, BOS first. One batch call: the library spreads it over the cores."""
    return [np.array([BOS, *ids], dtype=np.uint16) for ids in processor.encode(list(texts), out_type=int)]
