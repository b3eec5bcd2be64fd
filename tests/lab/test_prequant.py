"""Training on the validation tokens: it works, keeps its guard, and nothing that comes of it passes for a record."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pgolf import artifacts, paths
from pgolf.adopted import take_adopted
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.lab.prequant import PrequantConfig, prequant_ttt
from pgolf.lab.prequant_command import prequant
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.params import read_params, section
from pgolf.train.config import TrainConfig

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(layers=2, dim=16, heads=2, kv_heads=1, rope_dims=4, xsa_layers=2, loop_runs=1, parallel="none")
VOCAB, TOKENIZER, LENGTH = 24, "cd" * 32, 16
WINDOWS = EvaluateConfig(seq_len=LENGTH, stride=LENGTH, batch_tokens=64)


def model_and_text():
    torch.manual_seed(0)
    model = GPT(MODEL, VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, np.resize(np.random.default_rng(0).integers(1, VOCAB, 7), 200).astype(np.uint16)


def test_epochs_lower_the_loss_and_leave_what_is_frozen():
    model, text = model_and_text()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = PrequantConfig(epochs=3, lr=0.02, freeze_blocks=1, chunk_tokens=64)
    epochs = list(prequant_ttt(model, text, config, WINDOWS, itertools.count().__next__))
    assert [number for number, _ in epochs] == [1, 2, 3]
    assert epochs[0][1] > epochs[1][1] > epochs[2][1]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert any(name.startswith("blocks.1.") for name in changed)
    assert not any(name.startswith(("blocks.0.", "tok_emb")) for name in changed)


def test_the_guard_stops_before_the_budget_would_not_hold():
    """Epochs take 10 s each: after the first of five, 10 s are used and 40 are to come."""
    model, text = model_and_text()
    for budget, done in ((50, 5), (49, 1), (9, 1)):
        config = PrequantConfig(epochs=5, lr=0.01, freeze_blocks=0, chunk_tokens=64, seconds=budget)
        ticks = itertools.chain.from_iterable((t, t + 10) for t in itertools.count(0, 10))
        assert len(list(prequant_ttt(model, text, config, WINDOWS, lambda ticks=ticks: next(ticks)))) == done
    with pytest.raises(InputError, match="must hold a row of 16 tokens"):
        next(prequant_ttt(model, text, PrequantConfig(), WINDOWS, lambda: 0.0))
    with pytest.raises(InputError, match=r"`epochs` is 0"):
        PrequantConfig(epochs=0)


def test_the_mark_travels_with_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").symlink_to(ROOT / "presets")
    long = EvaluateConfig(seq_len=512, stride=512, batch_tokens=32_768)
    sections = read_params(ROOT / "params.yaml") | {"model": to_dict(MODEL), "evaluate": to_dict(long)}
    Path("params.yaml").write_text(json.dumps(sections))
    model, _ = model_and_text()
    about = {"vocab_size": VOCAB, "tokenizer": TOKENIZER}
    artifacts.save(
        paths.MODEL, model.state_dict(), schema="pgolf.checkpoint", stage="train", params={"model": to_dict(MODEL)},
        inputs={}, extra=about,
    )  # fmt: skip
    text = np.random.default_rng(0).integers(1, VOCAB, 32_768 + 1).astype(np.uint16)
    tokens = SimpleNamespace(val=text, check_model=lambda *given: None)
    monkeypatch.setattr("pgolf.data.tokens.open_tokens", lambda *given: tokens)
    assert not load_checkpoint(paths.MODEL).trained_on_validation
    prequant(epochs=1, lr=1e-3, freeze_blocks=0, seconds=60.0)
    config = section(paths.PARAMS, "train", TrainConfig)
    metrics = take_adopted(MODEL, config, tokens)
    assert metrics["trained_on_validation"] is True
    assert metrics["record_eligible"] is False
    taken = load_checkpoint(paths.MODEL)
    assert taken.trained_on_validation
    assert not torch.equal(taken.state["blocks.0.attn.c_q.weight"], model.blocks[0].attn.c_q.weight)
