"""`pgolf sweep cache`: what it says is what the evaluation then wins."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from one_layer import one_layer
from typer.testing import CliRunner

import pgolf.artifacts
import pgolf.data.shards
import pgolf.data.tokens
import pgolf.quant.artifact
from pgolf.cli import app
from pgolf.evaluate.config import CacheConfig, EvaluateConfig
from pgolf.evaluate.run import evaluate
from pgolf.model.gpt import GPT
from pgolf.params import section

VOCAB = 24


def tiny() -> GPT:
    model = one_layer(VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_the_gain_is_that_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that repeat themselves, at a temperature, with constants in the parameters that count for nothing."""
    tokens = np.tile(np.random.default_rng(0).integers(2, VOCAB, 15), 10).astype(np.uint16)
    tokens[::50] = 1
    options = {"seq_len": 32, "stride": 16, "batch_tokens": 64, "temperature": 1.4}
    own = {"cache": {"sharpness": 5.0}, "isolate_documents": True}
    params = tmp_path / "params.yaml"
    params.write_text(json.dumps({"evaluate": options | own}))
    model, blob = tiny(), tmp_path / "artifact"
    blob.write_bytes(b"")
    monkeypatch.setattr(pgolf.artifacts, "require", lambda *a: blob)
    monkeypatch.setattr(pgolf.quant.artifact, "decode_model", lambda *a: (model, {"vocab_size": 0, "tokenizer": ""}))
    opened = SimpleNamespace(train=["shard"], check_model=lambda *a: None)
    monkeypatch.setattr(pgolf.data.tokens, "open_tokens", lambda *a: opened)
    monkeypatch.setattr(pgolf.data.shards, "read_shard", lambda path: tokens)
    result = CliRunner().invoke(app, ["sweep", "cache", "--targets", "130", "--params", str(params)])
    assert result.exit_code == 0, result.output
    found = re.search(r"130 targets.*sharpness: (\S+), gate: (\S+), bias: (\S+)} wins (\S+) nats", result.output)
    assert found, result.output
    sharpness, gate, bias, gain = map(float, found.groups())
    text, config = tokens[:131], section(params, "evaluate", EvaluateConfig)

    def loss(cache: CacheConfig) -> float:
        settings = dataclasses.replace(config, cache=cache)
        return evaluate(model, text, np.ones(131, dtype=np.int64), settings).score.loss

    cache = CacheConfig(sharpness=sharpness, gate=gate, bias=bias)
    assert gain == pytest.approx(loss(CacheConfig()) - loss(cache), abs=1e-3)
    assert gain > 0.1
