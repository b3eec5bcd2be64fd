"""Adopting published weights: names, forms, and what the scheme must have been."""

import json
import os
from pathlib import Path

import brotli
import numpy as np
import pytest
import safetensors.torch
import torch
import zstandard
from typer.testing import CliRunner

from pgolf import artifacts, paths
from pgolf.adopt import adopt, read_tensors, unpack
from pgolf.checkpoint_file import load_checkpoint
from pgolf.cli import app
from pgolf.config import build, canonical, to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.params import read_params, section
from pgolf.quant.artifact import decode_model, encode_model, parameter_shapes, unpack_model
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.published import SHOWN, adopt_full, adopt_quantized, is_quantized, unbank
from pgolf.quant.quantize import quantize_model
from pgolf.quant.state import restore, split_key
from pgolf.train.config import TrainConfig

ROOT = Path(__file__).parents[2]

MODEL = ModelConfig(
    layers=3, dim=32, heads=4, kv_heads=2, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel="lanes", parallel_from=2,
    loop_start=1, loop_end=1, loop_runs=2, attn_gate="sparse", smear="window",
)  # fmt: skip
VOCAB = 40
SHAPES = parameter_shapes(MODEL, VOCAB)
TOKENIZER = "cd" * 32


def scheme(**changes):
    options = {
        "embed": GridConfig(bits=7, k_sigma=14.0), "attn": GridConfig(bits=6, k_sigma=13.0),
        "mlp": GridConfig(bits=5, k_sigma=6.0), "small_numel": 200, "gate_int8": True,
        "lqer": LqerConfig(top_k=3, rank=2, group=32),
    }  # fmt: skip
    return QuantizeConfig(**(options | changes))


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def stored(state, config):
    sources = matrix_inputs(MODEL)
    hessians = {source: torch.eye(state[name].size(1)) for name, source in sources.items()}
    return quantize_model(state, hessians, sources, config).tensors


@pytest.fixture(scope="module")
def quantized(state):
    return stored(state, scheme())


def banked(state):
    """The published form, by its definition: rows of layer i first, then those of the second matrix."""
    layers = range(MODEL.layers)
    matrix = {kind: [state[f"blocks.{i}.{kind}.weight"] for i in layers] for kind in KINDS}
    banks = {
        "qo_bank": torch.stack(matrix["attn.c_q"] + matrix["attn.proj"]),
        "kv_bank": torch.stack(matrix["attn.c_k"] + matrix["attn.c_v"]),
        "mlp_up_bank": torch.stack(matrix["mlp.fc"]),
        "mlp_down_bank": torch.stack(matrix["mlp.proj"]),
    }
    rest = {name: t for name, t in state.items() if not name.endswith(tuple(f".{kind}.weight" for kind in KINDS))}
    return banks | rest


KINDS = ("attn.c_q", "attn.proj", "attn.c_k", "attn.c_v", "mlp.fc", "mlp.proj")


def test_banks_are_taken_apart(state):
    file = {name: tensor.bfloat16() if "bank" in name else tensor for name, tensor in banked(state).items()}
    assert set(file) & {"qo_bank", "kv_bank", "mlp_up_bank", "mlp_down_bank"}
    found = adopt_full(file, SHAPES)
    assert list(found) == list(SHAPES)
    for name, tensor in state.items():
        expected = tensor.bfloat16().float() if name.endswith(tuple(f".{kind}.weight" for kind in KINDS)) else tensor
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], expected), name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_lose_their_wrappers(state, prefix):
    found = unbank({prefix + name: tensor for name, tensor in banked(state).items()})
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_full_precision_files_that_do_not_fit_are_refused_with_every_mismatch(state):
    file = dict(banked(state))
    del file["skip_weights"]
    file["rotary.inv_freq"] = torch.ones(3)
    file["tok_emb.weight"] = file["tok_emb.weight"][:-1]
    file["smear_lambda"] = torch.tensor([float("nan")])
    with pytest.raises(InputError) as caught:
        adopt_full(file, SHAPES)
    for line in (
        "skip_weights is missing", "rotary.inv_freq is not a tensor of this model",
        "tok_emb.weight is float32 [39, 32], the model needs float32 [40, 32]", "smear_lambda holds NaN",
    ):  # fmt: skip
        assert line in str(caught.value)
    with pytest.raises(InputError, match=r"qo_bank has shape \(5, 32, 32\)"):
        unbank({"qo_bank": torch.zeros(5, 32, 32)})
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc\.weight twice"):
        unbank({"blocks.0.mlp.fc.weight": torch.zeros(64, 32), "mlp_up_bank": torch.zeros(3, 64, 32)})


def test_long_lists_are_cut():
    with pytest.raises(InputError) as caught:
        adopt_full({"x": torch.zeros(1)}, SHAPES)
    assert f"and {len(SHAPES) + 1 - SHOWN} more" in str(caught.value)
    assert "`pgolf preset use`" in str(caught.value)


SCHEMES = {
    "all": scheme(),
    "no corrections": scheme(lqer=LqerConfig()),
    "symmetric": scheme(lqer=LqerConfig(top_k=2, rank=3, asymmetric=False, factor_bits=5)),
    "both kinds": scheme(lqer=LqerConfig(top_k=30, rank=2, group=128)),
    "float16 gates": scheme(gate_int8=False),
    "eight bits": scheme(embed=GridConfig(bits=8, k_sigma=4.0)),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_the_scheme_is_read_off_the_tensors(state, name):
    config = SCHEMES[name]
    tensors = stored(state, config)
    assert is_quantized(tensors)
    assert not is_quantized(state)
    found = adopt_quantized(dict(reversed(tensors.items())), SHAPES)
    assert set(found.tensors) == set(tensors)
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in found.tensors.items())
    assert found.config.gate_int8 == config.gate_int8
    for label in ("embed", "attn", "mlp"):
        codes = [int(t.abs().max()) for key, t in tensors.items() if split_key(key)[1] == ".q" and _class(key) == label]
        clip = getattr(found.config, label).clip
        assert clip >= max(codes) > (clip - 1) // 2, "the narrowest grid that holds the codes"
        step = clip / getattr(config, label).clip  # k / c is what the codes show
        assert getattr(found.config, label).k_sigma == pytest.approx(getattr(config, label).k_sigma * step, rel=0.05)
    if config.lqer.top_k:
        expected = (len({split_key(key)[0] for key in tensors if ".lq" in key}), config.lqer.rank)
        assert (found.config.lqer.top_k, found.config.lqer.rank) == expected
        assert found.config.lqer.asymmetric == config.lqer.asymmetric
        if config.lqer.asymmetric:
            assert found.config.lqer.group == config.lqer.group
    blob = encode_model(found.tensors, MODEL, VOCAB, found.config, TOKENIZER, "zstd")
    decoded = decode_model(blob, torch.device("cpu"), torch.float32)[0].state_dict()
    assert all(torch.equal(decoded[key], tensor) for key, tensor in restore(tensors).items())


def _class(key):
    return "embed" if "tok_emb" in key else "mlp" if ".mlp." in key else "attn"


def described(tensors, config):
    kinds = {}
    for key in tensors:
        name, suffix = split_key(key)
        if suffix == ".q":
            corrected = "+lqer_asym" if f"{name}.lqA_a" in tensors else "+lqer" if f"{name}.lqA" in tensors else ""
            kinds[name] = f"gptq (int{getattr(config, _class(name)).bits}){corrected}"
        elif suffix in (".gq", ""):
            kinds[name] = "gate_int8_row" if suffix else "passthrough (float16)"
    return kinds


@pytest.mark.parametrize("name", ["all", "symmetric"])
def test_descriptions_give_the_bits(state, name):
    config = SCHEMES[name]
    tensors = stored(state, config)
    found = adopt_quantized(tensors, SHAPES, described(tensors, config)).config
    assert [grid.bits for grid in (found.embed, found.attn, found.mlp)] == [7, 6, 5]


def broken(tensors, **changes):
    copy = {key: tensor.clone() for key, tensor in tensors.items()} | changes
    return {key: tensor for key, tensor in copy.items() if tensor is not None}


FC = "blocks.1.mlp.fc.weight"
KEYS = "blocks.1.attn.c_k.weight"  # among the smallest, hence never corrected here


@pytest.mark.parametrize(("changes", "message"), [
    ({f"{FC}.scale": None}, f"{FC}.scale is missing"),
    ({f"{FC}.q": None}, f"{FC}.q is missing"),
    ({"x.q": torch.zeros(40, 40, dtype=torch.int8)}, "x.q is not a tensor of this model"),
    ({f"{FC}.q": torch.zeros(64, 31, dtype=torch.int8)}, r"is int8 \[64, 31\], the model needs int8 \[64, 32\]"),
    ({f"{FC}.q": torch.zeros(64, 32, dtype=torch.int16)}, r"is int16 \[64, 32\], the model needs int8"),
    ({f"{FC}.scale": torch.full((64,), float("inf")).half()}, f"{FC}.scale holds NaN or infinity"),
    ({f"{FC}.q": torch.full((64, 32), -128, dtype=torch.int8)}, "holds -128 to -128, beyond -127 to 127"),
    ({f"{KEYS}.lqA_a": torch.zeros(16, 2, dtype=torch.int8)}, f"{KEYS}.lqAs_a is missing"),
    ({"blocks.0.attn.attn_gate_w.gq": torch.full((4, 12), -128, dtype=torch.int8)}, "holds -128 to -128"),
    ({"blocks.0.attn.attn_gate_w.gs": torch.zeros(())}, r"is float32 \[\], the model needs float16 \[4\]"),
    ({"skip_weights": None}, "skip_weights is missing"),
])  # fmt: skip
def test_quantized_files_that_do_not_fit_are_refused(quantized, changes, message):
    with pytest.raises(InputError, match=message):
        adopt_quantized(broken(quantized, **changes), SHAPES)


def test_factors_beyond_their_grids_are_refused(quantized):
    for suffix, value in ((".lqA_a", 2), (".lqA_a", -3), (".lqB_a", 8), (".lqB_a", -9)):
        key = next(key for key in quantized if key.endswith(suffix))
        with pytest.raises(InputError, match=rf"{key} holds {value} to {value}, beyond"):
            adopt_quantized(broken(quantized, **{key: torch.full_like(quantized[key], value)}), SHAPES)


@pytest.mark.parametrize(("name", "kind", "message"), [
    (FC, "gptq (int4)", "class `mlp` mixes widths"),
    (FC, "passthrough (float16)", rf"{FC}.q is there"),
    ("skip_weights", "gptq (int6)", r"skip_weights\.q is missing"),
    ("blocks.0.attn.attn_gate_w", "passthrough (float16)", r"attn_gate_w\.gq is there"),
    ("blocks.1.attn.c_k.weight", "gptq (int6)+lqer", r"c_k\.weight\.lqA is missing"),
])  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(quantized, name, kind, message):
    with pytest.raises(InputError, match=message):
        adopt_quantized(quantized, SHAPES, described(quantized, scheme()) | {name: kind})


def test_codes_beyond_the_described_bits_are_refused(quantized):
    kinds = {name: kind.replace("int5", "int3") for name, kind in described(quantized, scheme()).items()}
    with pytest.raises(InputError, match=rf"{FC}\.q holds -\d+ to \d+, beyond -3 to 3"):
        adopt_quantized(quantized, SHAPES, kinds)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with params and a manifest, and the current one."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps(read_params(ROOT / "params.yaml") | {"model": to_dict(MODEL)}))
    manifest = {"vocab_size": VOCAB, "tokenizer_sha256": TOKENIZER}
    artifacts.write_json(paths.TOKENS / "manifest.json", manifest)
    return tmp_path


def save(path, tensors, kinds=None):
    metadata = {"pgolf_reference": json.dumps(kinds)} if kinds else None
    data = safetensors.torch.save({key: t.contiguous() for key, t in tensors.items()}, metadata)
    pack = {".br": lambda d: brotli.compress(d, quality=1), ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(pack.get(path.suffix, lambda d: d)(data))
    return path


@pytest.mark.parametrize("name", ["q.safetensors", "q.safetensors.br", "q.safetensors.zst"])
def test_a_quantized_file_becomes_the_artifact_of_quantize(workplace, quantized, name):
    done = adopt(save(workplace / name, quantized, described(quantized, scheme())))
    assert done.target == paths.QUANTIZED
    assert done.next_command == "pgolf run --from compress"
    tensors, meta = artifacts.load(paths.QUANTIZED, schema="pgolf.quantized", made_by="quantize")
    assert all(torch.equal(tensors[key], tensor) for key, tensor in quantized.items())
    assert (meta["vocab_size"], meta["tokenizer"]) == (VOCAB, TOKENIZER)
    config = build(QuantizeConfig, meta["params"]["quantize"], "quantize")
    assert config == done.scheme
    assert config.mlp.bits == 5
    model = build(ModelConfig, meta["params"]["model"], "model")
    blob = encode_model(tensors, model, meta["vocab_size"], config, meta["tokenizer"], "brotli")
    assert all(torch.equal(unpack_model(blob)[1][key], tensor) for key, tensor in quantized.items())


@pytest.mark.parametrize("name", ["fp.safetensors.zst", "fp.pt"])
def test_full_precision_files_become_what_train_takes(workplace, state, name):
    path = workplace / name
    torch.save(banked(state), path) if name.endswith(".pt") else save(path, banked(state))
    done = adopt(path)
    assert (done.target, done.scheme) == (paths.ADOPTED / "fp.safetensors", None)
    taken = section(paths.PARAMS, "train", TrainConfig).adopt
    assert (taken.file, taken.sha256) == (str(done.target), artifacts.sha256(done.target))
    assert not paths.MODEL.exists()  # DVC deletes the outputs of a stage before it runs
    checkpoint = load_checkpoint(done.target)
    assert (checkpoint.config, checkpoint.vocab_size, checkpoint.tokenizer) == (MODEL, VOCAB, TOKENIZER)
    built = checkpoint.build(torch.device("cpu"), torch.float32).state_dict()
    assert all(torch.equal(built[key], tensor) for key, tensor in state.items())


def test_adoption_overwrites_only_when_told(workplace, quantized):
    save(workplace / "q.safetensors", quantized)
    paths.QUANTIZED.parent.mkdir(parents=True)
    paths.QUANTIZED.write_text("precious")
    run = CliRunner().invoke
    assert run(app, ["adopt", "q.safetensors"]).exit_code == 2
    good = paths.PARAMS.read_text()
    paths.PARAMS.write_text(good.replace('"damp"', '"dampp"'))
    assert run(app, ["adopt", "q.safetensors", "--force"]).exit_code == 2
    assert paths.QUANTIZED.read_text() == "precious"
    paths.PARAMS.write_text(good)
    assert run(app, ["adopt", "q.safetensors", "--force"]).exit_code == 0
    assert artifacts.load(paths.QUANTIZED, schema="pgolf.quantized", made_by="quantize")[0].keys() == quantized.keys()


class Evil:
    def __reduce__(self):
        return (Path("owned").write_text, ("x",))


def test_files_that_cannot_be_read_are_refused(workplace, quantized, monkeypatch):
    cases = {
        "none.safetensors": (None, "is missing"),
        "text.safetensors": (b"hello, this is no model at all", "neither safetensors"),
        "cut.safetensors.br": (brotli.compress(b"x" * 999)[:-3], "does not unpack"),
        "no.safetensors.br": (b"\xff" * 40, "does not unpack"),
        "no.safetensors.zst": (b"\xff" * 40, "does not unpack"),
        "cut.pt": (b"PK\x03\x04 and no more", "cannot be read"),
    }
    for name, (data, message) in cases.items():
        if data is not None:
            (workplace / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            adopt(workplace / name)
    torch.save({"a": Evil()}, workplace / "evil.pt")
    with pytest.raises(InputError, match="weights only"):
        adopt(workplace / "evil.pt")
    assert not Path("owned").exists()
    torch.save({"model": {"a": torch.ones(1)}}, workplace / "nested.pt")
    with pytest.raises(InputError, match="state dict of tensors"):
        adopt(workplace / "nested.pt")
    monkeypatch.setattr("pgolf.adopt.MAX_BYTES", 1000)
    for name in ("bomb.br", "bomb.zst"):
        with pytest.raises(InputError, match="more than 1,000 bytes"):
            unpack(save(workplace / name, quantized), (workplace / name).read_bytes())
    assert not paths.QUANTIZED.exists()
    assert not paths.MODEL.exists()


def test_foreign_metadata_is_no_description(workplace, quantized):
    for kinds in ({"program": "some"}, ["tok_emb.weight"], "x", None):
        path = save(workplace / "q.safetensors", quantized, kinds)
        assert read_tensors(path, path.read_bytes())[1] is None


REFERENCE = os.environ.get("PGOLF_REFERENCE")
PUBLISHED = ModelConfig(
    attn_gate="sparse", attn_gate_scale=0.5, smear="window", parallel="lanes", parallel_from=8, qk_gain=5.0
)


@pytest.mark.skipif(not REFERENCE, reason="PGOLF_REFERENCE does not name the folder of the reference artifacts")
def test_reference_survives_adoption_and_the_container(workplace, monkeypatch):
    """Without the general compressor, which takes more than a minute at this size and has tests of its own."""
    monkeypatch.setattr("pgolf.codec.container.compress", lambda codec, data: data)
    Path("params.yaml").write_text(canonical(read_params(ROOT / "params.yaml") | {"model": to_dict(PUBLISHED)}))
    artifacts.write_json(paths.TOKENS / "manifest.json", {"vocab_size": 8192, "tokenizer_sha256": TOKENIZER})
    file = Path(str(REFERENCE)) / "record1855_bench200_quantized.safetensors.br"
    done = adopt(file)
    assert done.scheme is not None
    assert done.weights == 35_945_671
    assert [grid.bits for grid in (done.scheme.embed, done.scheme.attn, done.scheme.mlp)] == [7, 6, 6]
    grids = [grid.k_sigma for grid in (done.scheme.embed, done.scheme.attn, done.scheme.mlp)]
    assert np.allclose(grids, [14.0, 13.0, 11.5], rtol=0.01)
    assert done.scheme.lqer == LqerConfig(top_k=3)
    assert done.scheme.gate_int8
    tensors, _ = artifacts.load(paths.QUANTIZED, schema="pgolf.quantized", made_by="quantize")
    published = safetensors.torch.load(brotli.decompress(file.read_bytes()))
    assert tensors.keys() == published.keys()
    blob = encode_model(tensors, PUBLISHED, 8192, done.scheme, TOKENIZER, "zstd")
    header, found = unpack_model(blob)
    assert len(header["lqer"]) == 3
    for key, tensor in published.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].numpy().tobytes() == tensor.numpy().tobytes(), key
