"""A finished run in miniature: a folder with every file that a report reads, made without training."""

import json
from pathlib import Path

import numpy as np
import torch

from pgolf import artifacts, paths
from pgolf.data.config import TokenizeConfig
from pgolf.data.shards import BOS, shard_name, write_shard
from pgolf.data.tokenizer import encode, parse_tokenizer, train_tokenizer
from pgolf.evaluate.updates import Update, as_table

TEXTS = [
    f"The café <{n}> & its {n * 7} guests.\nSomebody wrote a longer line of text {n}. " * (n + 1) for n in range(6)
]
SOURCES = ["novel", "law", "novel", "law", "recipe", "novel"]
METRICS = {
    "train": {"steps": 12, "parameters": 1000, "hardware": "1x CPU", "train_seconds": 3.0, "tokens": 99},
    "compress": {"bytes_model": 3_000, "bytes_tok_emb": 2_000, "bytes_mlp.fc": 900, "bytes_header": 100},
    "evaluate": {"val_bpb": 2.25, "val_loss": 4.5, "quantized_bpb": 2.5},
}
PROVENANCE = {"params": {}, "inputs": {}}


def make_run(folder: Path, *, seed: int = 0, ttt: bool = True, gates: bool = True) -> Path:
    """Write the run; other seeds have other losses, weights and traces of the same text."""
    random = np.random.default_rng(seed)
    _text(folder)
    _scores(folder, random, ttt)
    trace = {
        "step": torch.arange(1, 13), "seconds": torch.arange(12) * 0.5, "lr": torch.linspace(1, 0, 12),
        "loss": torch.linspace(7, 4, 12), "grad_norm": torch.rand(12, 3) + 0.1,
        "observed": torch.arange(3) * 2.0, "q_gain": torch.rand(3, 3, 4), "skip_gate": torch.rand(3, 2),
    }  # fmt: skip
    if gates:
        trace |= {"attn_gate": torch.rand(3, 3, 4), "token_gate": torch.rand(3, 3), "smear": torch.rand(3, 1)}
    params = {
        "model": {"loop_runs": 2, "stack_runs": 1},
        "train": {"steps": 12, "seconds": None, "reserve_seconds": 0.0, "loop_at": 0.5},
    }
    artifacts.save(folder / paths.TRACE, trace, schema="pgolf.trace", stage="train", params=params, inputs={})
    names = [f"blocks.{i}.{part}.weight" for i in range(3) for part in ("attn.c_q", "mlp.fc")]
    weights = {name: torch.from_numpy(random.standard_normal((8, 8)).astype(np.float32)) for name in names}
    artifacts.save(folder / paths.MODEL, weights, schema="pgolf.checkpoint", stage="train", **PROVENANCE)
    errors = dict.fromkeys(names, 1e-3) | {"tok_emb.weight": 1e-4}
    artifacts.save(
        folder / paths.QUANTIZED, {"x": torch.zeros(1)}, schema="pgolf.quantized", stage="quantize", **PROVENANCE,
        extra={"errors": errors},
    )  # fmt: skip
    for stage, values in METRICS.items():
        artifacts.write_json(folder / paths.metrics(stage), values)
    (folder / "params.yaml").write_text(f"data:\n  train: train.jsonl\n  val: val.jsonl\ntrain:\n  seed: {seed}\n")
    return folder


def _text(folder: Path) -> None:
    lines = [json.dumps({"text": text, "source": source}) for text, source in zip(TEXTS, SOURCES, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "val.jsonl").write_text("\n".join(lines) + "\n")
    model = train_tokenizer(TEXTS, TokenizeConfig(vocab_size=340))
    artifacts.write_bytes(folder / paths.TOKENIZER, model)
    tokens = np.concatenate(encode(parse_tokenizer(model, "small"), TEXTS))
    sizes = np.where(tokens == BOS, 0, 2)
    for split, values in (("val", tokens), ("val_bytes", sizes)):
        path = folder / paths.TOKENS / shard_name(split, 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, values.astype(np.uint16))
    artifacts.write_json(folder / paths.TOKENS / "manifest.json", {"any": "thing"})


def _scores(folder: Path, random: np.random.Generator, ttt: bool) -> None:
    count = (folder / paths.TOKENS / shard_name("val", 0)).stat().st_size // 2 - 512 - 1
    losses = torch.from_numpy(random.random(count).astype(np.float32) * 10)
    tensors = {"losses": losses, "plain_losses": losses + 0.1, "updates": as_table([Update(9, 0, 9, 1)])}
    artifacts.save(
        folder / paths.LOSSES, tensors | ({"unadapted": losses + 0.05} if ttt else {}), schema="pgolf.losses",
        stage="evaluate", params={"ttt": "chunk" if ttt else "none"},
        inputs={"manifest": artifacts.sha256(folder / paths.TOKENS / "manifest.json")},
    )  # fmt: skip
    table = {"targets": [count - 5, 5], "seconds": [3.0, 5.0] if ttt else [None, None]}
    artifacts.write_json(folder / paths.PACE, {"documents": table})
