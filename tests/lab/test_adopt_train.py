"""Adopted weights in the place of trained ones: what the stage `train` copies, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import call

from pgolf import artifacts, paths
from pgolf.adopt import adopt, fitting_presets
from pgolf.adopted import take_adopted
from pgolf.checkpoint_file import load_checkpoint
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.params import read_params, section
from pgolf.quant.artifact import parameter_shapes
from pgolf.report.curves import first_above
from pgolf.train.config import AdoptConfig, TrainConfig

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(
    layers=3, dim=32, heads=4, kv_heads=2, rope_dims=4, xsa_layers=2, loop_start=1, loop_end=1, parallel_from=2
)
VOCAB, TOKENIZER = 40, "cd" * 32


def tokens_of(vocab_size=VOCAB):
    """What `take_adopted` reads of the tokens."""

    def check_model(path, vocab, tokenizer):
        if (vocab, tokenizer) != (vocab_size, TOKENIZER):
            raise InputError("another tokenizer")

    return SimpleNamespace(check_model=check_model)


def random_state(shapes):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def adopted(tmp_path, monkeypatch):
    """A working folder in which a checkpoint was adopted."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps(read_params(ROOT / "params.yaml") | {"model": to_dict(MODEL)}))
    artifacts.write_json(paths.TOKENS / "manifest.json", {"vocab_size": VOCAB, "tokenizer_sha256": TOKENIZER})
    state = random_state(parameter_shapes(MODEL, VOCAB))
    torch.save(state, "theirs.pt")
    adopt(Path("theirs.pt"))
    return state


def config():
    return section(paths.PARAMS, "train", TrainConfig)


def test_the_stage_takes_the_weights_and_says_so(adopted):
    metrics = take_adopted(MODEL, config(), tokens_of())
    parameters = sum(tensor.numel() for tensor in adopted.values())
    assert metrics == {  # no seconds, which nobody measured
        "adopted": True, "record_eligible": False, "steps": 0, "tokens": 0, "world_size": 1, "parameters": parameters,
    }  # fmt: skip
    taken = load_checkpoint(paths.MODEL)
    assert all(torch.equal(taken.state[name], tensor) for name, tensor in adopted.items())
    trace, _ = artifacts.load(paths.TRACE, schema="pgolf.trace", made_by="train")
    series = {name: trace[name].tolist() for name in ("step", "seconds", "lr", "loss")}
    assert first_above(series["step"], 10, series["seconds"]) == 0  # what the report does with it
    artifacts.load(paths.AVERAGES, schema="pgolf.averages", made_by="train")


def test_no_other_parameter_of_train_changes_the_artifact(adopted):
    take_adopted(MODEL, config(), tokens_of())
    before = artifacts.sha256(paths.MODEL)
    take_adopted(MODEL, replace(config(), seed=7, steps=9, ema=0.5), tokens_of())
    assert artifacts.sha256(paths.MODEL) == before


def test_what_does_not_belong_is_refused(adopted):
    with pytest.raises(InputError, match=r"`model\.heads` 4, not 2"):
        take_adopted(replace(MODEL, heads=2), config(), tokens_of())
    with pytest.raises(InputError, match="another tokenizer"):
        take_adopted(MODEL, config(), tokens_of(vocab_size=41))
    with pytest.raises(InputError, match="another file now"):
        take_adopted(MODEL, replace(config(), adopt=replace(config().adopt, sha256="00" * 32)), tokens_of())
    Path(config().adopt.file).unlink()
    with pytest.raises(InputError, match="is missing: run `pgolf adopt` again"):
        take_adopted(MODEL, config(), tokens_of())
    assert not paths.MODEL.exists()
    with pytest.raises(InputError, match="both `file` and `sha256`"):
        AdoptConfig(file="x")


def test_a_file_of_another_system_names_its_preset(adopted):
    systems = {"deep": replace(MODEL, layers=4), "wide": replace(MODEL, dim=64)}
    for name, model in systems.items():
        artifacts.write_json(
            Path(f"presets/{name}.yaml"), {"expected_verdict": {"text": "Fine."}, "model": to_dict(model)}
        )
    artifacts.write_json(Path("presets/overlay.yaml"), {"model": to_dict(systems["deep"])})
    state = random_state(parameter_shapes(systems["deep"], VOCAB))
    assert fitting_presets(state, VOCAB) == ["deep"]
    assert fitting_presets({"x": torch.ones(1)}, VOCAB) == []
    torch.save({name: tensor.half() for name, tensor in state.items()}, "other.pt")
    before = paths.PARAMS.read_bytes()
    with pytest.raises(InputError, match=r"the shapes are those of --preset deep$"):
        adopt(Path("other.pt"))
    assert paths.PARAMS.read_bytes() == before
    adopt(Path("other.pt"), preset="deep")
    assert section(paths.PARAMS, "model", ModelConfig) == systems["deep"]
    assert config().adopt.file == "data/adopted/other.safetensors"


def test_the_chain_goes_on_from_adopted_weights(workspace: Path) -> None:
    """The tiny chain: its own weights, published as a state dict and adopted, give the same artifact."""
    trained = load_checkpoint(workspace / paths.MODEL)
    torch.save({f"module.{name}": tensor for name, tensor in trained.state.items()}, workspace / "theirs.pt")
    shipped = (workspace / paths.ARTIFACT).read_bytes()
    for stage in ("train", "calibrate", "quantize", "compress"):
        for path in (workspace / f"artifacts/{stage}").iterdir():
            path.unlink()  # as DVC does
    call("pgolf", "adopt", "theirs.pt", cwd=workspace)
    call("pgolf", "run", "--from", "train", "--to", "compress", cwd=workspace)
    assert (workspace / paths.ARTIFACT).read_bytes() == shipped
    assert json.loads((workspace / "metrics/train.json").read_text())["adopted"] is True
