"""params.yaml, its sections and the presets."""

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from ruamel.yaml import YAML

from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.params import read_params, section
from pgolf.presets import apply_preset, expected_verdict, preset_files
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.sections import Sections, load_sections

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OVERLAYS = [name for name in PRESETS if (ROOT / f"presets/{name}.yaml").read_text().startswith("# Overlay")]
SYSTEMS = [name for name in PRESETS if name not in OVERLAYS]


@pytest.fixture
def params(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def write(path, text):
    path.write_text(text)
    return path


def test_numbers_and_text_are_those_of_yaml_1_2(tmp_path):
    path = write(tmp_path / "p.yaml", "a: 1e-3\nb: on\nc: 010\nd: 1_000\ne: yes\nf: true\ng: null\nh: 1e3\ni: '6'\n")
    found = read_params(path)
    assert found["a"] == 0.001
    assert type(found["a"]) is float
    assert (found["b"], found["e"], found["i"]) == ("on", "yes", "6")
    assert found["f"] is True
    assert found["g"] is None
    assert found["h"] == 1000.0
    assert type(found["h"]) is float


def test_section_is_built_with_its_defaults(tmp_path):
    path = write(tmp_path / "p.yaml", "quantize:\n  damp: 2e-2\n  attn: {bits: 5, k_sigma: 11}\n")
    expected = QuantizeConfig(damp=0.02, attn=GridConfig(bits=5, k_sigma=11.0))
    assert section(path, "quantize", QuantizeConfig) == expected
    assert section(write(path, "quantize: {}\n"), "quantize", QuantizeConfig) == QuantizeConfig()


@pytest.mark.parametrize(("text", "message"), [
    (None, r"p\.yaml is missing: run in the folder that holds params\.yaml, or name it with --params"),
    ("quantise: {}\n", r"p\.yaml has no section `quantize`; did you mean `quantise`\?"),
    ("train: {}\ndata: {}\n", r"p\.yaml has no section `quantize` \(known: data, train\)"),
    ("quantize:\n", r"`quantize` must be a mapping of keys to values, got None"),
    ("quantize: {dump: 0.1}\n", r"`quantize\.dump` is not a parameter; did you mean `damp`\?"),
    ("quantize: {attn: {bits: '6'}}\n", r"`quantize\.attn\.bits` is '6' \(str\); it must be a whole number"),
    ("quantize: {damp: .nan}\n", r"`quantize\.damp` is nan"),
    ("quantize: {damp: .inf}\n", r"`quantize\.damp` is inf"),
    ("quantize: {damp: 2020-01-01}\n", r"`quantize\.damp` is .*date"),
    ("quantize: {damp: 0.1\n", r"p\.yaml is not valid YAML"),
    ("quantize: {damp: 0.1, damp: 0.2}\n", r"p\.yaml is not valid YAML.*duplicate key"),
    ("quantize: !!python/name:os.system {}\n", r"p\.yaml is not valid YAML"),
    ("a: 1\n---\nb: 2\n", r"p\.yaml is not valid YAML"),
    ("\x00", r"p\.yaml is not valid YAML"),
    ("- quantize\n", r"p\.yaml must hold one section per stage, got list"),
    ("", r"p\.yaml must hold one section per stage, got NoneType"),
])  # fmt: skip
def test_mistakes_in_one_section(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        section(path, "quantize", QuantizeConfig)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"a: \xff\xfe\xfa\n")
    with pytest.raises(InputError, match="not valid YAML"):
        read_params(tmp_path / "p.yaml")


def test_committed_params_are_valid_and_resolve_to_every_key(params):
    sections = load_sections(params)
    resolved = sections.resolved()
    assert list(resolved) == [field.name for field in dataclasses.fields(Sections)]
    for name, values in resolved.items():
        assert values == to_dict(getattr(sections, name))
        assert set(read_params(params)[name]) <= set(values)


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: text.replace("quantize:", "quantise:"), r"`quantise` is not a section of .* mean `quantize`\?"),
    (lambda text: text + "\nseed: 3\n", r"`seed` is not a section of .*params\.yaml"),
    (lambda text: re.sub(r"(?s)compress:.*?\n\n", "", text), r"has no section `compress`: add `compress: \{\}`"),
    (lambda text: text.replace("damp:", "dampp:"), r"`quantize\.dampp` is not a parameter; did you mean `damp`\?"),
    (lambda text: re.sub(r"steps: \d+", "steps: 7.5", text), r"`train\.steps` is 7\.5 \(float\)"),
    (lambda text: re.sub(r"codec: \w+", "codec: brtli", text), r"`compress\.codec` is 'brtli'; it must be one of"),
])  # fmt: skip
def test_mistakes_anywhere_in_the_file(params, change, message):
    text = change(params.read_text())
    assert text != params.read_text()
    with pytest.raises(InputError, match=message):
        load_sections(write(params, text))


def comments(text):
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


def merged(target, overlay):
    for key, value in overlay.items():
        target[key] = merged(dict(target[key]), value) if isinstance(value, dict) else value
    return target


@pytest.mark.parametrize("name", PRESETS)
def test_preset_sets_its_keys_keeps_all_others_and_every_comment(params, name):
    before, text = read_params(params), params.read_text()
    overlay = YAML(typ="safe").load(ROOT / f"presets/{name}.yaml")
    if overlay.pop("expected_verdict", None):  # a system: what it does not name takes its default
        for section in set(before) - {"data", "tokenize", "verify_size"}:
            before[section] = to_dict(get_type_hints(Sections)[section]())
        del overlay["published"]
    apply_preset(params, name, folder=ROOT / "presets")
    assert read_params(params) == merged(before, overlay)
    assert comments(params.read_text()) == comments(text)
    load_sections(params)
    assert sorted(path.name for path in params.parent.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize("name", PRESETS)
def test_applying_a_preset_twice_changes_nothing_more(params, name):
    assert apply_preset(params, name, folder=ROOT / "presets")[name] > 0
    text = params.read_bytes()
    assert apply_preset(params, name, folder=ROOT / "presets") == {name: 0}
    assert params.read_bytes() == text


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_overlay_fits_every_system_and_leaves_no_trace_in_it(params, name, overlay):
    apply_preset(params, name, folder=ROOT / "presets")
    expected = load_sections(params)
    apply_preset(params, overlay, folder=ROOT / "presets")
    assert load_sections(params) != expected
    apply_preset(params, name, folder=ROOT / "presets")
    assert load_sections(params) == expected


def test_a_system_leaves_nothing_of_the_one_before(params, tmp_path):
    """One after the other in the same file, and each in a fresh one."""
    for name in SYSTEMS:
        apply_preset(params, name, folder=ROOT / "presets")
        fresh = write(tmp_path / "fresh.yaml", (ROOT / "params.yaml").read_text())
        apply_preset(fresh, name, folder=ROOT / "presets")
        assert read_params(params) == read_params(fresh), name


def test_systems_say_what_an_audit_finds_and_overlays_do_not():
    for name in PRESETS:
        verdict = expected_verdict(ROOT / f"presets/{name}.yaml")
        assert bool(verdict) is (name in SYSTEMS), name
    assert "over the cap" in (expected_verdict(ROOT / "presets/pr1520.yaml") or "")


def test_there_are_systems_and_overlays():
    assert SYSTEMS == ["pr1520", "pr1807", "pr2071", "pr401", "pr635", "record-1493", "record-1855"]
    assert "mini" in OVERLAYS
    assert set(preset_files(ROOT / "presets")) == set(PRESETS)
    for name in PRESETS:
        assert re.match(r"# \S", (ROOT / f"presets/{name}.yaml").read_text()), "the first line says what it is"


@pytest.mark.parametrize(("overlay", "message"), [
    ("train: {step: 5}\n", r"preset `new`: `train\.step` is not a parameter; did you mean `steps`\?"),
    ("trian: {steps: 5}\n", r"preset `new`: `trian` is not a section of .*params\.yaml; did you mean `train`\?"),
    ("train: {steps: 1.5}\n", r"preset `new`: `train\.steps` is 1\.5 \(float\)"),
    ("train: {seconds: 600.0}\n", r"preset `new`: in `train`: `steps` is \d+ and `seconds` is 600\.0"),
    ("train: 3\n", r"preset `new`: `train` must be a mapping"),
    ("train: {steps: 5\n", r"new\.yaml is not valid YAML"),
    ("- a\n", r"new\.yaml must hold"),
])  # fmt: skip
def test_wrong_preset_leaves_params_untouched(params, tmp_path, overlay, message):
    (tmp_path / "presets").mkdir()
    write(tmp_path / "presets/new.yaml", overlay)
    before = params.read_bytes()
    with pytest.raises(InputError, match=message) as caught:
        apply_preset(params, "new", folder=tmp_path / "presets")
    assert "candidate" not in str(caught.value)
    assert params.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "presets"]


def test_unknown_preset_is_refused_with_a_suggestion(params):
    with pytest.raises(InputError, match=r"`record-1439` is not a preset; did you mean `record-1493`\?"):
        apply_preset(params, "record-1439", folder=ROOT / "presets")


def test_folder_without_presets_is_refused(params, tmp_path):
    with pytest.raises(InputError, match="holds no presets"):
        apply_preset(params, "mini", folder=tmp_path / "nowhere")


@pytest.mark.parametrize(("text", "message"), [(None, "is missing"), ("a: {\n", "not valid YAML"), ("", "must hold")])
def test_preset_over_a_broken_params_file(params, text, message):
    if text is None:
        params.unlink()
    else:
        params.write_text(text)
    with pytest.raises(InputError, match=message):
        apply_preset(params, "mini", folder=ROOT / "presets")


def test_record_1493_has_the_published_constants(params):
    apply_preset(params, "mini", folder=ROOT / "presets")
    apply_preset(params, "record-1493", folder=ROOT / "presets")
    found = load_sections(params)
    model, train, quantize, evaluate = found.model, found.train, found.quantize, found.evaluate
    assert found.tokenize.vocab_size == 8192
    assert (model.layers, model.dim, model.heads, model.kv_heads) == (11, 512, 8, 4)
    assert (model.mlp_mult, model.leaky_slope, model.xsa_layers, model.qk_gain) == (4.0, 0.5, 11, 5.25)
    assert (model.rope_dims, model.rope_base, model.ln_scale, model.softcap) == (16, 1e4, True, 30.0)
    assert (model.parallel_from, model.loop_start, model.loop_end, model.loop_runs) == (7, 3, 5, 3)
    assert model.embed_std == 0.005
    assert (train.loop_at, train.batch_tokens, train.seq_len, train.batches) == (0.35, 786_432, 2048, "rows")
    assert (train.muon.lr, train.embed.lr, train.scalar.lr) == (0.022, 0.03, 0.02)
    assert (train.muon.momentum, train.muon.momentum_start, train.muon.momentum_warmup) == (0.99, 0.92, 1500)
    assert (train.muon.newton_schulz, train.muon.ns_steps, train.muon.row_norm) == ("standard", 5, True)
    assert (train.muon.weight_decay, train.embed.weight_decay, train.scalar.weight_decay) == (0.095, 0.085, 0.02)
    assert (train.beta1, train.beta2, train.grad_clip) == (0.9, 0.95, 0.3)
    assert (train.warmdown, train.lr_floor, train.ema) == (0.72, 0.0, 0.9965)
    assert (train.seconds, train.steps, train.reserve_seconds) == (600.0, None, 12.0)
    assert train.seed in (42, 314, 999)
    assert (quantize.attn, quantize.mlp) == (GridConfig(bits=6, k_sigma=12.85),) * 2
    assert quantize.embed == GridConfig(bits=8, k_sigma=20.0)
    assert (quantize.damp, quantize.blocksize, quantize.small_numel) == (0.01, 128, 65_536)
    assert (found.calibrate.batches, found.calibrate.rows, found.calibrate.seq_len) == (64, 48, 2048)
    assert (evaluate.seq_len, evaluate.stride, evaluate.isolate_documents) == (2048, 64, False)
    chunk = evaluate.chunk
    assert (evaluate.ttt, chunk.chunk_tokens, chunk.lr, chunk.momentum) == ("chunk", 32_768, 0.005, 0.9)
    assert (chunk.epochs, chunk.hard_epochs, chunk.rows_per_step, chunk.grad_clip) == (3, None, 32, 1.0)
    assert (chunk.freeze_blocks, chunk.freeze_embedding, chunk.ema) == (0, False, None)
    assert (chunk.max_train_chunks, chunk.warmup_chunks) == (None, 0)
    assert found.verify_size.cap_bytes == 16_000_000


def test_defaults_of_the_model_are_record_1493(params):
    apply_preset(params, "record-1493", folder=ROOT / "presets")
    found = load_sections(params)
    for name in ("model", "calibrate", "quantize", "evaluate", "verify_size"):
        value = getattr(found, name)
        expected = EvaluateConfig(ttt="chunk") if name == "evaluate" else type(value)()  # adaptation is asked for
        assert value == expected, name


def test_several_presets_are_applied_as_one_or_not_at_all(params):
    before = params.read_bytes()
    with pytest.raises(InputError, match="nonsense"):
        apply_preset(params, "mini", "nonsense", folder=ROOT / "presets")
    assert params.read_bytes() == before
    assert list(apply_preset(params, "record-1493", "bench", folder=ROOT / "presets")) == ["record-1493", "bench"]
    assert load_sections(params).train.seconds == 200.0
    assert load_sections(params).model.dim == 512


def test_params_yaml_names_every_knob(params):
    assert read_params(params) == load_sections(params).resolved()
