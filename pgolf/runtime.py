"""The whole program of a submission, in memory: train, calibrate, quantize, encode, decode, score.

This module and what it imports is the runtime closure: `pgolf.submit.pack_code` turns it into the one `train_gpt.py`
whose bytes count. Shards come from DATA_PATH in the challenge's format; the byte sidecar beside the validation shards
is used where it exists, otherwise the tokenizer at TOKENIZER_PATH gives the bytes per token. SEED replaces the seed.
Started by torchrun, all processes train and score; the first alone calibrates, quantizes, writes and prints.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgolf import ranks
from pgolf.budget import Clock
from pgolf.codec.config import CompressConfig
from pgolf.config import build
from pgolf.data.shards import read_shard, shard_files
from pgolf.device import pick_device, synchronize
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.run import evaluate, references, warm_up
from pgolf.model.config import ModelConfig
from pgolf.quant.artifact import decode_model, encode_model
from pgolf.quant.calibrate import calibrate
from pgolf.quant.calibrate_config import CalibrateConfig
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.run import run_quantization
from pgolf.train.config import TrainConfig
from pgolf.train.run import Run, run_training


def validation(data: Path, tokenizer: Path) -> tuple[NDArray[np.uint16], NDArray[np.integer]]:
    """The validation tokens [n] and the bytes charged to each [n]."""
    tokens = np.concatenate([read_shard(path) for path in shard_files(data, "val")])
    if any(data.glob("fineweb_val_bytes_*.bin")):
        sidecar = np.concatenate([read_shard(path) for path in shard_files(data, "val_bytes")])
        if len(sidecar) != len(tokens):
            raise InputError(
                f"{data} has {len(sidecar)} byte counts for {len(tokens)} validation tokens: fetch both again"
            )
        return tokens, sidecar
    from sentencepiece import SentencePieceProcessor

    from pgolf.data.byte_table import byte_table

    return tokens, byte_table(SentencePieceProcessor(model_file=str(tokenizer))).counts(tokens)


def write_artifact(out: Path, run: Run, params: Mapping[str, Any], shards: Sequence[Path], tokenizer_hash: str) -> None:
    """Calibrate, quantize and encode a trained model; prints how long that took of the training clock, and the size."""
    config, clock = run.model.config, Clock()
    device = run.model.tok_emb.weight.device
    with clock.phase("calibrate"):
        hessians = calibrate(run.model, build(CalibrateConfig, params["calibrate"], "calibrate"), shards)
    print(f"train_time:{run.trained.seconds:.1f}s calibrate_time:{clock.seconds('calibrate'):.1f}s", flush=True)
    state = {name: tensor.detach().cpu() for name, tensor in run.model.state_dict().items()}
    codec = build(CompressConfig, params["compress"], "compress").codec
    done = run_quantization(
        state, hessians, config, build(QuantizeConfig, params["quantize"], "quantize"), tokenizer_hash, codec,
        lambda: Path(sys.argv[0]).stat().st_size, device=device,
    )  # fmt: skip
    blob = encode_model(done.quantized.tensors, config, params["vocab_size"], done.config, tokenizer_hash, codec)
    out.write_bytes(blob)
    print(f"bytes_model:{len(blob)}", flush=True)


def main(params: Mapping[str, Any]) -> dict[str, float]:
    """Run everything with the resolved params; prints one line per phase and returns the final numbers."""
    data, tokenizer = (
        Path(os.environ.get("DATA_PATH", "tokens")),
        Path(os.environ.get("TOKENIZER_PATH", "tokenizer.model")),
    )
    out = Path(os.environ.get("ARTIFACT_PATH", "model.pgolf"))
    if not tokenizer.exists():
        raise InputError(f"{tokenizer} is missing: set TOKENIZER_PATH to the SentencePiece model of the shards")
    tokenizer_hash = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    ranks.start()
    if ranks.rank():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  until the end
    train_config = build(TrainConfig, params["train"], "train")
    train_config = replace(train_config, seed=int(os.environ.get("SEED", train_config.seed)))
    shards, (device, dtype), clock = shard_files(data, "train"), pick_device(), Clock()
    run = run_training(
        build(ModelConfig, params["model"], "model"), train_config, params["vocab_size"], shards, device, dtype,
        report=lambda r: print(f"step:{r.step} train_loss:{r.loss:.4f} train_time:{r.seconds:.1f}s", flush=True),
        record=False,
    )  # fmt: skip
    if ranks.rank() == 0:
        write_artifact(out, run, params, shards, tokenizer_hash)
    ranks.decide(0)  # all wait for the artifact
    tokens, token_bytes = validation(data, tokenizer)
    if int(tokens.max()) >= params["vocab_size"]:
        raise InputError(f"{data} holds token {tokens.max()}, the vocabulary has {params['vocab_size']}: wrong shards")
    config, shown = build(EvaluateConfig, params["evaluate"], "evaluate"), set[int]()

    def report(phase: str, done: int, total: int) -> None:
        if (part := 20 * done // total) not in shown:
            shown.add(part)
            print(f"{phase}:{done}/{total} eval_time:{clock.seconds('evaluate'):.1f}s", flush=True)

    with clock.phase("evaluate"):
        model, _ = decode_model(out.read_bytes(), device, dtype)
        with clock.phase("warm-up"):
            warm_up(model, config)
            synchronize(device)
        result = evaluate(model, tokens, token_bytes, config, report)
        synchronize(device)
    score, steps = result.score, sum(update.steps for update in result.updates)
    print(f"val_tokens:{score.tokens} val_bytes:{score.bytes} ttt:{config.ttt} update_steps:{steps}")
    print(f"val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f} eval_time:{clock.seconds('evaluate'):.1f}s", flush=True)
    print(f"warmup_time:{clock.seconds('warm-up'):.1f}s")
    plain = references(model, tokens, token_bytes, replace(config, measure_gain=False), result).plain
    print(f"quantized_bpb:{plain.bpb:.8f}")
    return {"val_bpb": score.bpb, "val_loss": score.loss, "bytes_model": out.stat().st_size}
