"""What the `data` and `tokenize` sections of params.yaml hold: which documents, which tokenizer, how large a shard."""

from dataclasses import dataclass

from pgolf.errors import InputError

UINT16_IDS = 2**16
HEADER_MAX_TOKENS = 2**31 - 1
SPECIALS_AND_BYTES = 4 + 256


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The two document files. Their order is kept: it is the order of training and of scoring."""

    train: str
    """Path of the training documents: JSON lines with the key `text`, as .jsonl, .jsonl.zst or .jsonl.xz."""

    val: str
    """Path of the validation documents, in the same formats. Training documents equal to one of them are dropped."""

    def __post_init__(self) -> None:
        for key, value in (("train", self.train), ("val", self.val)):
            if not value:
                raise InputError(f"`{key}` is empty: give the path of a .jsonl, .jsonl.zst or .jsonl.xz file")
        if self.train == self.val:
            raise InputError(f"`train` and `val` are both {self.train!r}: give two files, or the score means nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """The tokenizer and the shards written with it."""

    vocab_size: int = 1024
    """Tokenizer vocabulary in pieces, 4 specials and 256 bytes included; the challenge has 1024, 4096, 8192."""

    model: str | None = None
    """Path of a published SentencePiece model to use as it is; null trains one on the training documents."""

    shard_tokens: int = 100_000_000
    """Tokens per shard file; 1e8 in the published exports, 1e7 in the challenge's local preparation script."""

    tokenizer_train_docs: int | None = None
    """Train the tokenizer on the first N training documents; null takes all (published sp4096, sp8192: 5,000,000)."""

    def __post_init__(self) -> None:
        if not SPECIALS_AND_BYTES < self.vocab_size <= UINT16_IDS:
            raise InputError(
                f"`vocab_size` is {self.vocab_size}: it must be over {SPECIALS_AND_BYTES} (specials and byte pieces) "
                f"and at most {UINT16_IDS} (shards hold uint16 ids)"
            )
        if not 2 <= self.shard_tokens <= HEADER_MAX_TOKENS:
            raise InputError(
                f"`shard_tokens` is {self.shard_tokens}: it must be from 2 to {HEADER_MAX_TOKENS} "
                "(the shard header counts tokens in an int32)"
            )
        if self.tokenizer_train_docs is not None and self.tokenizer_train_docs < 1:
            raise InputError(f"`tokenizer_train_docs` is {self.tokenizer_train_docs}: give 1 or more, or null for all")
        if self.model is not None and self.tokenizer_train_docs is not None:
            raise InputError(
                f"`tokenizer_train_docs` is {self.tokenizer_train_docs} although `model` is {self.model!r}, which is "
                "not trained: set one of the two to null"
            )
