"""Small published exports: what tokenizing documents gives, laid out as a repository on the hub lays it out."""

import json
import random
from dataclasses import dataclass

from pgolf.data.catalogue import EVAL_LENGTH, Export
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.data.sidecar import CASEOPS, NONE

VOCAB = 340
VAL_DOCUMENTS = 21


@dataclass(frozen=True)
class Tiny:
    """One tokenization of the same documents."""

    export: Export
    files: dict[str, bytes]  # path in the repository -> content
    folder: object  # tokens/ and tokenizer.model, as the stage wrote them
    config: TokenizeConfig
    metrics: dict[str, float]

    @property
    def repo(self):
        return self.export.repo


def documents(seed, count):
    rng = random.Random(seed)
    words = ["".join(rng.choices("aeioubdklmnrst", k=rng.randint(2, 7))) for _ in range(150)]
    words += [word.title() for word in words[:40]] + [word.upper() for word in words[:10]] + ["iPhone", "½", "𓀀"]
    return [" ".join(rng.choices(words, k=rng.randint(10, 150))) + "." for _ in range(count)]


def make(folder, name, case_ops):
    """Tokenize the documents and describe the result as an export; the standard one comes without sidecar."""
    folder.mkdir()
    for split, seed, count in (("train", 1, 120), ("val", 2, VAL_DOCUMENTS)):
        lines = (json.dumps({"text": text}) + "\n" for text in documents(seed, count))
        (folder / f"{split}.jsonl").write_text("".join(lines))
    data = DataConfig(train=str(folder / "train.jsonl"), val=str(folder / "val.jsonl"))
    config = TokenizeConfig(vocab_size=VOCAB, case_ops=case_ops, shard_tokens=7000)
    metrics = tokenize_corpus(data, config, folder / "tokens", folder / "tokenizer.model")
    tokens = int(metrics["val_tokens"])
    export = Export(
        repo=f"someone/{name}",
        dataset=f"fineweb10B_{name}",
        tokenizer=f"{name}_bpe.model",
        vocab_size=VOCAB,
        transform=CASEOPS if case_ops else NONE,
        val_documents=VAL_DOCUMENTS,
        val_tokens=tokens,
        val_targets=(tokens - 1) // EVAL_LENGTH * EVAL_LENGTH,
        tokens_per_byte=(tokens - 1) / metrics["val_bytes"],
    )
    files = {
        f"datasets/datasets/{export.dataset}/{path.name}": path.read_bytes()
        for path in (folder / "tokens").glob("fineweb_*.bin")
        if case_ops or "_bytes_" not in path.name
    }
    stats = {"docs_val": VAL_DOCUMENTS, "tokens_val": tokens}
    files["datasets/manifest.json"] = json.dumps({"datasets": [{"name": export.dataset, "stats": stats}]}).encode()
    files[f"datasets/tokenizers/{export.tokenizer}"] = (folder / "tokenizer.model").read_bytes()
    files["README.md"] = b"A data set.\n"
    return Tiny(export, files, folder, config, metrics)
