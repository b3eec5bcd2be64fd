"""What the `data` and `tokenize` sections of params.yaml hold: which documents, which tokenizer, how large a shard."""

from dataclasses import dataclass
from pathlib import Path, PurePath

from pgolf.errors import InputError

UINT16_IDS = 2**16
HEADER_MAX_TOKENS = 2**31 - 1
SPECIALS_AND_BYTES = 4 + 256
PUBLISHED = "published.json"
"""Name of the manifest that `pgolf fetch` writes into a folder."""
CASE_OPERATOR_COUNT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """The two document files, whose order is that of training and of scoring, or one export that `pgolf fetch` got.

    A fetched export holds both splits: `train` and `val` then both name its manifest, PATH/published.json. (DVC can
    track a small file as a dependency, but not a key that is null.)
    """

    train: str
    """Path of the training documents: JSON lines with the key `text`, as .jsonl, .jsonl.zst or .jsonl.xz."""

    val: str
    """Path of the validation documents, in the same formats. Training documents equal to one of them are dropped."""

    train_shards: int | None = None
    """Of a fetched export, take the first N training shards; null takes all. Its validation is always whole."""

    def __post_init__(self) -> None:
        for key, value in (("train", self.train), ("val", self.val)):
            if not value:
                raise InputError(f"`{key}` is empty: give the path of a .jsonl, .jsonl.zst or .jsonl.xz file")
        fetched = [PurePath(path).name == PUBLISHED for path in (self.train, self.val)]
        if any(fetched) and self.train != self.val:
            raise InputError(
                f"`train` is {self.train!r}, `val` is {self.val!r}: name the same {PUBLISHED} in both keys, since an "
                "export's validation documents may be among other training documents"
            )
        if self.train == self.val and not all(fetched):
            raise InputError(f"`train` and `val` are both {self.train!r}: give two files, or the score means nothing")
        if self.train_shards is not None and not (all(fetched) and self.train_shards >= 1):
            raise InputError(
                f"`train_shards` is {self.train_shards}: give 1 or more, and only with a fetched export ({PUBLISHED} "
                "in `train` and `val`), or null"
            )

    @property
    def published(self) -> Path | None:
        """Manifest of the fetched export, or None for document files."""
        return Path(self.train) if PurePath(self.train).name == PUBLISHED else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    """The tokenizer and the shards written with it."""

    vocab_size: int = 1024
    """Tokenizer vocabulary in pieces, 4 specials and 256 bytes included; the challenge has 1024, 4096, 8192."""

    model: str | None = None
    """Path of a published SentencePiece model to use as it is; null trains one on the training documents."""

    case_ops: bool = False
    """Write capitals as operators in front of lower-case words before tokenizing (CaseOps, PR 1729)."""

    shard_tokens: int = 100_000_000
    """Tokens per shard file; 1e8 in the published exports, 1e7 in the challenge's local preparation script."""

    tokenizer_train_docs: int | None = None
    """Train the tokenizer on the first N training documents; null takes all (published sp4096, sp8192: 5,000,000)."""

    def __post_init__(self) -> None:
        reserved = SPECIALS_AND_BYTES + (CASE_OPERATOR_COUNT if self.case_ops else 0)
        if not reserved < self.vocab_size <= UINT16_IDS:
            raise InputError(
                f"`vocab_size` is {self.vocab_size}: it must be over {reserved} (specials, bytes, case operators) "
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
