"""A small corpus with capitals of every kind, and the tokenize stage on it."""

import json
import random
from pathlib import Path

from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus

# What the byte accounting must survive: normalised characters, runs of spaces, byte pieces, literal operators.
ODD = [
    "½ cup…",
    "two\n\nlines",
    "𓀀",
    "café",
    "\ue001",
    "\ue004\ue002 x",
    "iPhone OpenAI McDonald's A I",
    "a\u00a0 b",
    "ＡＢ",
]


def cased_documents(seed: int, count: int) -> list[str]:
    """Documents of invented words in lower, title and upper case and mixtures, every third with something odd."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(1, 7))) for _ in range(150)]
    spellings = [str.lower, str.lower, str.lower, str.title, str.upper, lambda word: word[:2] + word[2:].title()]
    texts = [" ".join(rng.choice(spellings)(word) for word in rng.choices(words, k=25)) + "." for _ in range(count)]
    return [f"{text} {rng.choice(ODD)} end" if index % 3 == 0 else text for index, text in enumerate(texts)]


TRAIN, VAL = cased_documents(1, 120), cased_documents(2, 30)


def write_documents(path: Path, texts: list[str]) -> str:
    """A JSON-lines file; returns its path as a string."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def tokenize(folder: Path, train: list[str] = TRAIN, val: list[str] = VAL, **settings: object) -> Path:
    """Run the stage: `tokens/` and `tokenizer.model` in `folder`, which is returned."""
    folder.mkdir(exist_ok=True)
    data = DataConfig(
        train=write_documents(folder / "train.jsonl", train), val=write_documents(folder / "val.jsonl", val)
    )
    config = TokenizeConfig(**{"vocab_size": 360, **settings})  # type: ignore[arg-type]
    tokenize_corpus(data, config, folder / "tokens", folder / "tokenizer.model")
    return folder
