import resource
import time

import pytest
import torch

from pgolf.codec.container import pack
from pgolf.config import to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT, matrix_inputs
from pgolf.quant.artifact import (
    SCHEMA,
    decode_model,
    encode_model,
    layout_from_header,
    layout_of,
    parameter_shapes,
    unpack_model,
)
from pgolf.quant.config import GridConfig, QuantizeConfig
from pgolf.quant.grid import dequantize
from pgolf.quant.quantize import quantize_model

MODEL = ModelConfig(
    layers=3, dim=16, heads=2, kv_heads=1, mlp_mult=2.0, rope_dims=4, xsa_layers=2, parallel_from=None,
    loop_start=1, loop_end=1, loop_runs=2,
)  # fmt: skip
SCHEME = QuantizeConfig(embed=GridConfig(bits=7, k_sigma=14.0), mlp=GridConfig(k_sigma=11.5), small_numel=100)
VOCAB = 40
TOKENIZER = "ab" * 32


@pytest.fixture(scope="module")
def stored():
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in parameter_shapes(MODEL, VOCAB).items()}
    sources = matrix_inputs(MODEL)
    hessians = {source: torch.eye(state[name].size(1)) for name, source in sources.items()}
    return quantize_model(state, hessians, sources, SCHEME).tensors


def encoded(stored, codec="brotli"):
    return encode_model(stored, MODEL, VOCAB, SCHEME, TOKENIZER, codec)


@pytest.mark.parametrize("codec", ["brotli", "zstd", "lzma"])
def test_round_trip_is_bit_exact_in_codes_scales_and_small_tensors(stored, codec):
    header, tensors = unpack_model(encoded(stored, codec))
    assert set(tensors) == set(stored)
    for name, tensor in stored.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert header == {
        "schema": SCHEMA,
        "model": to_dict(MODEL),
        "vocab_size": VOCAB,
        "quantize": to_dict(SCHEME),
        "lqer": [],
        "tokenizer": TOKENIZER,
    }


def test_decoded_model_is_the_dequantized_one(stored):
    model, header = decode_model(encoded(stored), torch.device("cpu"), torch.float32)
    assert header["tokenizer"] == TOKENIZER
    assert model.config == MODEL
    state = model.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == parameter_shapes(MODEL, VOCAB)
    for name, tensor in state.items():
        expected = (
            dequantize(stored[f"{name}.q"], stored[f"{name}.scale"]) if f"{name}.q" in stored else stored[name].float()
        )
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected), name


def test_decoded_model_computes_what_a_model_with_these_weights_computes(stored):
    decoded, _ = decode_model(encoded(stored), torch.device("cpu"), torch.float32)
    twin = GPT(MODEL, VOCAB)
    twin.load_state_dict(decoded.state_dict())
    ids = torch.arange(10)[None]
    for model in (decoded, twin):
        model.prepare(10)
    assert decoded.looped
    with torch.no_grad():
        assert torch.equal(decoded(ids), twin(ids))


def test_encoding_is_deterministic(stored):
    assert encoded(stored) == encoded(dict(reversed(stored.items())))


def test_tensor_of_another_shape_is_refused(stored):
    wrong = stored | {"blocks.0.mlp.fc.weight.q": stored["blocks.0.mlp.fc.weight.q"][:-1]}
    with pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc\.weight\.q"):
        encoded(wrong)


def test_layout_stores_every_tensor_once_and_groups_codes_by_role(stored):
    layout = layout_of(parameter_shapes(MODEL, VOCAB), SCHEME)
    assert sorted(entry.key for entry in layout) == sorted(stored)
    for entry in layout:
        assert entry.shape == tuple(stored[entry.key].shape)
        assert f"torch.{entry.dtype}" == str(stored[entry.key].dtype)
    groups = {entry.key: entry.group for entry in layout}
    assert {groups[f"blocks.{i}.attn.c_k.weight.q"] for i in range(3)} == {"attn.c_k"}
    assert groups["tok_emb.weight.q"] == "tok_emb"
    assert {groups[key] for key in groups if key.endswith(".scale")} == {"scales"}
    assert len(set(groups.values())) == 7 + 2


def header(model=None, quantize=None, **changes):
    return {
        "schema": SCHEMA,
        "model": to_dict(MODEL) | (model or {}),
        "vocab_size": VOCAB,
        "quantize": to_dict(SCHEME) | (quantize or {}),
        "lqer": [],
        "tokenizer": TOKENIZER,
    } | changes


HOSTILE = {
    "vocabulary of a billion": header(vocab_size=10**9),
    "vocabulary of true": header(vocab_size=True),
    "vocabulary of text": header(vocab_size="40"),
    "no vocabulary": header(vocab_size=None),
    "negative vocabulary": header(vocab_size=-1),
    "a billion layers": header({"layers": 10**9, "xsa_layers": 1}),
    "negative layers": header({"layers": -3}),
    "a billion runs": header({"loop_runs": 10**9}),
    "width that overflows": header({"dim": 2**40}),
    "width beyond 64 bits": header({"dim": 10**30}),
    "a billion heads": header({"heads": 10**9}),
    "hidden units that overflow": header({"mlp_mult": 1e300}),
    "hidden units without end": header({"mlp_mult": float("inf")}),
    "hidden units not a number": header({"mlp_mult": float("nan")}),
    "hidden units beyond a float": header({"mlp_mult": 10**400}),
    "no hidden units": header({"mlp_mult": 1e-9}),
    "largest of everything": header(
        {"dim": 16_384, "mlp_mult": 64.0, "layers": 256, "loop_runs": 64}, vocab_size=65_536
    ),
    "layers as text": header({"layers": "3"}),
    "layers as a fraction": header({"layers": 3.0}),
    "layers as true": header({"layers": True}),
    "unknown model key": header({"layer": 3}),
    "model as a list": header() | {"model": [1, 2]},
    "no model": {key: value for key, value in header().items() if key != "model"},
    "no scheme": {key: value for key, value in header().items() if key != "quantize"},
    "no tokenizer": {key: value for key, value in header().items() if key != "tokenizer"},
    "tokenizer as a number": header(tokenizer=7),
    "grid as a number": header(quantize={"embed": 8}),
    "grid of 64 bits": header(quantize={"embed": {"bits": 64, "k_sigma": 20.0}}),
    "small tensors quantized": header(quantize={"small_numel": 0}),
    "another schema": header(schema="pgolf.tokens"),
    "no corrections": {key: value for key, value in header().items() if key != "lqer"},
    "corrections without a scheme": header(lqer=[0]),
    "corrections as text": header(quantize={"lqer": {"top_k": 2}}, lqer="01"),
    "corrections of true": header(quantize={"lqer": {"top_k": 2}}, lqer=[False, True]),
    "corrections by name": header(quantize={"lqer": {"top_k": 1}}, lqer=["tok_emb.weight"]),
    "fewer corrections": header(quantize={"lqer": {"top_k": 2}}, lqer=[0]),
    "a million corrections": header(quantize={"lqer": {"top_k": 2}}, lqer=list(range(10**6))),
    "a correction twice": header(quantize={"lqer": {"top_k": 2}}, lqer=[1, 1]),
    "corrections out of order": header(quantize={"lqer": {"top_k": 2}}, lqer=[2, 1]),
    "correction of no matrix": header(quantize={"lqer": {"top_k": 1}}, lqer=[19]),
    "correction before the first": header(quantize={"lqer": {"top_k": 1}}, lqer=[-1]),
    "a billion corrections declared": header(quantize={"lqer": {"top_k": 10**9}}, lqer=[0]),
    "rank 0": header(quantize={"lqer": {"top_k": 1, "rank": 0}}, lqer=[0]),
    "group 0": header(quantize={"lqer": {"top_k": 1, "group": 0}}, lqer=[0]),
    "factors of 64 bits": header(quantize={"lqer": {"top_k": 1, "factor_bits": 64}}, lqer=[0]),
    "gates as text": header(quantize={"gate_int8": "true"}),
    "nothing": {},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_end_quickly_in_one_error(case):
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError):
        layout_from_header(HOSTILE[case])
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 100_000


def test_header_of_the_tests_is_accepted_without_its_faults(stored):
    assert {entry.key for entry in layout_from_header(header())} == set(stored)


@pytest.mark.parametrize("case", ["a billion layers", "width that overflows", "vocabulary of a billion", "nothing"])
def test_hostile_headers_inside_a_sound_container_are_refused(case):
    blob = pack(HOSTILE[case], [], {}, "brotli")
    with pytest.raises(InputError):
        unpack_model(blob)


def test_messages_name_the_fault():
    for case, text in (
        ("another schema", r"holds `pgolf.tokens`, expected `pgolf.model`"),
        ("a billion layers", r"`layers` is 1000000000; it must be at most 256"),
        ("layers as text", r"`model.layers` is '3' \(str\); it must be a whole number"),
        ("unknown model key", r"`model.layer` is not a parameter; did you mean `layers`"),
        ("no tokenizer", r"does not name its tokenizer"),
        ("vocabulary of a billion", r"vocabulary is 1000000000"),
    ):
        with pytest.raises(InputError, match=text):
            layout_from_header(HOSTILE[case])


def test_shapes_are_found_without_touching_the_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    parameter_shapes(MODEL, VOCAB)
    assert torch.equal(torch.rand(4), expected)


def test_shapes_are_those_of_a_real_model():
    real = {name: tuple(tensor.shape) for name, tensor in GPT(MODEL, VOCAB).state_dict().items()}
    assert parameter_shapes(MODEL, VOCAB) == real
