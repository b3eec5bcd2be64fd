"""Every published system, shrunk by the `mini` overlay, through training, quantization and its artifact."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.config import build
from pgolf.data.shards import read_shard, write_shard
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.params import read_params
from pgolf.presets import apply_preset, expected_verdict, preset_files
from pgolf.quant.artifact import decode_model, encode_model
from pgolf.quant.calibrate import calibrate
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore
from pgolf.sections import Sections, load_sections
from pgolf.train.openings import observer
from pgolf.train.run import run_training

ROOT = Path(__file__).parents[2]
SYSTEMS = [name for name, path in preset_files(ROOT / "presets").items() if expected_verdict(path)]
CPU, BOS = torch.device("cpu"), 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Documents in which each token tells a lot about the next."""
    random = np.random.default_rng(0)
    tokens = (np.cumsum(random.integers(1, 4, 40_000)) % 500 + 8).astype(np.uint16)
    tokens[::97] = BOS
    path = tmp_path_factory.mktemp("tokens") / "fineweb_train_000000.bin"
    write_shard(path, tokens)
    assert len(read_shard(path)) == 40_000
    return [path]


def shrunk(name: str, folder: Path) -> Sections:
    params = folder / "params.yaml"
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    apply_preset(params, name, "mini", folder=ROOT / "presets")
    return load_sections(params)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_quantizes_and_comes_back_from_its_artifact(
    name: str, shards: list[Path], tmp_path: Path
) -> None:
    sections = shrunk(name, tmp_path)
    vocab_size = sections.tokenize.vocab_size
    config = dataclasses.replace(sections.train, steps=6)
    look = observer(shards, config.seq_len, CPU)
    run = run_training(sections.model, config, vocab_size, shards, CPU, torch.float32, observe=look)
    assert run.trained.steps == 6
    assert run.trained.trace["loss"][0].item() == pytest.approx(math.log(vocab_size), rel=2e-3)
    assert ("attn_gate" in run.trained.trace) == (sections.model.attn_gate != "none")
    assert run.model.looped
    assert not run.model.training

    hessians = calibrate(run.model, sections.calibrate, shards)
    state = run.model.state_dict()
    done = quantize_model(state, hessians, matrix_inputs(sections.model), sections.quantize)
    blob = encode_model(done.tensors, sections.model, vocab_size, sections.quantize, "0" * 64, sections.compress.codec)
    model, _ = decode_model(blob, CPU, torch.float32)
    restored = restore(done.tensors)
    assert model.state_dict().keys() == state.keys() == restored.keys()
    assert all(torch.equal(tensor, restored[key]) for key, tensor in model.state_dict().items())

    rows = torch.from_numpy(read_shard(shards[0])[:1161].astype(np.int64)).unfold(0, 129, 129)
    losses = []
    for candidate in (run.model, model):
        candidate.prepare(128)
        with torch.no_grad():
            losses.append(candidate.losses(rows[:, :-1], rows[:, 1:]).mean().item())
    assert losses[0] < math.log(vocab_size) - 0.05  # it learned
    assert losses[1] == pytest.approx(losses[0], abs=0.1)  # and kept that


def test_the_overlay_shrinks_what_is_large_and_changes_no_technique(tmp_path: Path) -> None:
    same = ("parallel", "skips", "attn_gate", "smear", "value_residual", "loop_runs", "activation", "bigram")
    for name in SYSTEMS:
        full = build(ModelConfig, read_params(ROOT / f"presets/{name}.yaml")["model"], "model")
        mini = shrunk(name, tmp_path).model
        assert [getattr(mini, key) for key in same] == [getattr(full, key) for key in same], name
        assert mini.value_embed == full.value_embed
        assert (mini.layers, mini.dim) < (full.layers, full.dim)
