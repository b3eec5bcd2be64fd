"""The shipped model: quantized tensors in a container, from which alone the model is rebuilt.

The header names what determines every tensor's name, shape and type: the model's shape constants, the vocabulary, the
quantization scheme and the matrices with a low-rank correction. The layout is computed from it on both sides and not
stored.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pgolf.codec.choose import Choice, Report, silent
from pgolf.codec.container import pack, packed_size, unpack
from pgolf.codec.layout import Array, Entry
from pgolf.config import build, to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.lqer import factor_shapes
from pgolf.quant.policy import Shapes, grouped, is_power, resolve
from pgolf.quant.state import corrected_names, restore

SCHEMA = "pgolf.model"


def parameter_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in GPT(config, vocab_size).state_dict().items()}


def layout_of(shapes: Shapes, config: QuantizeConfig, corrected: Collection[str] = ()) -> list[Entry]:
    """Stored tensors in order: codes grouped by the matrix's role in the block, then what belongs to them.

    Packed ternary codes, gates, low-rank factors, scales and small tensors each share one group; `corrected` names the
    matrices with factors.
    """
    codes: list[Entry] = []
    gates: list[Entry] = []
    factors: list[Entry] = []
    scales: list[Entry] = []
    small: list[Entry] = []
    for name, rule in resolve(shapes, config).items():
        shape = shapes[name]
        if rule.grid:
            role = re.sub(r"^blocks\.\d+\.", "", name).removesuffix(".weight")
            codes.append(Entry(role, f"{name}.q", "int8", shape))
            if grouped(rule, config):
                from pgolf.quant.ternary import groups, packed_bytes

                codes[-1] = Entry("ternary", f"{name}.q", "int8", packed_bytes(shape))
                scales.append(Entry("scales", f"{name}.scale", "float16", (shape[0], groups(shape[1]))))
            else:
                scales.append(Entry("scales", f"{name}.scale", "float16", shape[:1]))
            if config.columns != "none" and not grouped(rule, config):
                scales.append(Entry("scales", f"{name}.cols", "float16", shape[1:]))
            if config.rotate and is_power(shape[0]):
                scales.append(Entry("scales", f"{name}.rot", "float16", (0,)))
        elif rule.int8_rows:
            gates.append(Entry(f"{rule.tensor_class}s", f"{name}.gq", "int8", shape))
            scales.append(Entry("scales", f"{name}.gs", "float16", shape[:1]))
        else:
            small.append(Entry("small", name, "float16", shape))
        if name in corrected:
            for suffix, (dtype, size) in factor_shapes(shape, config.lqer).items():
                group, entries = ("lqer", factors) if dtype == "int8" else ("scales", scales)
                entries.append(Entry(group, f"{name}{suffix}", dtype, size))
    return codes + gates + factors + scales + small


def layout_from_header(header: Mapping[str, Any]) -> list[Entry]:
    """The layout that a header determines; InputError where it is not a header of ours."""
    if header.get("schema") != SCHEMA:
        raise InputError(
            f"the artifact holds `{header.get('schema')}`, expected `{SCHEMA}`: run `pgolf compress` again"
        )
    vocab_size = header.get("vocab_size")
    if type(vocab_size) is not int or not 1 <= vocab_size <= 65_536:
        raise InputError(
            f"the artifact's vocabulary is {vocab_size!r}; tokens are 16 bits wide: run `pgolf compress` again"
        )
    if not isinstance(header.get("tokenizer"), str):
        raise InputError("the artifact does not name its tokenizer: run `pgolf compress` again")
    shapes = parameter_shapes(build(ModelConfig, header.get("model"), "model"), vocab_size)
    config = build(QuantizeConfig, header.get("quantize"), "quantize")
    return layout_of(shapes, config, _corrected(header.get("lqer"), matrices(shapes, config), config.lqer.top_k))


def matrices(shapes: Shapes, config: QuantizeConfig) -> list[str]:
    """Names of the tensors that are stored as codes, in order."""
    return [name for name, rule in resolve(shapes, config).items() if rule.grid]


def _corrected(indices: Any, names: Sequence[str], top_k: int) -> set[str]:
    """The matrices that a header's list of rising positions in `names` gives a correction."""
    expected = min(top_k, len(names))
    if not isinstance(indices, list) or len(indices) != expected:
        raise InputError(
            f"the artifact must list {expected} matrices with a low-rank correction (`lqer.top_k` is {top_k}, "
            f"{len(names)} matrices): run `pgolf quantize` and `pgolf compress` again"
        )
    if not all(type(index) is int and 0 <= index < len(names) for index in indices):
        raise InputError(f"the artifact's list of corrected matrices is not one of positions below {len(names)}")
    if any(first >= second for first, second in pairwise(indices)):
        raise InputError("the artifact's list of corrected matrices does not rise: one is repeated or out of order")
    return {names[index] for index in indices}


def encode_model(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    vocab_size: int,
    quantize: QuantizeConfig,
    tokenizer: str,
    codec: Choice,
    report: Report = silent,
) -> bytes:
    """The container of a quantized model; `tokenizer` is the SHA-256 of the tokenizer that its tokens come from."""
    return pack(*_contents(tensors, model, vocab_size, quantize, tokenizer), codec, report)


def model_bytes(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    vocab_size: int,
    quantize: QuantizeConfig,
    tokenizer: str,
    codec: Choice,
    report: Report = silent,
) -> int:
    """Length of what `encode_model` returns, without decoding it as a check."""
    return packed_size(*_contents(tensors, model, vocab_size, quantize, tokenizer), codec, report)


def _contents(
    tensors: Mapping[str, Tensor], model: ModelConfig, vocab_size: int, quantize: QuantizeConfig, tokenizer: str
) -> tuple[dict[str, Any], list[Entry], dict[str, Array]]:
    """Header, layout and arrays of a container."""
    corrected = corrected_names(tensors)
    names = matrices(parameter_shapes(model, vocab_size), quantize)
    header = {
        "schema": SCHEMA,
        "model": to_dict(model),
        "vocab_size": vocab_size,
        "quantize": to_dict(quantize),
        "lqer": [index for index, name in enumerate(names) if name in corrected],
        "tokenizer": tokenizer,
    }
    return header, layout_from_header(header), {name: tensor.numpy() for name, tensor in tensors.items()}


def unpack_model(blob: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and stored tensors of a container, as `encode_model` was given them."""
    header, arrays = unpack(blob, layout_from_header)
    return header, {name: torch.from_numpy(array) for name, array in arrays.items()}


def decode_model(blob: bytes, device: torch.device, dtype: torch.dtype) -> tuple[GPT, dict[str, Any]]:
    """The dequantized model, ready to score, and the header of the container."""
    header, stored = unpack_model(blob)
    with torch.device("meta"):
        model = GPT(build(ModelConfig, header["model"], "model"), header["vocab_size"], dtype)
    model.load_state_dict(restore(stored), assign=True)
    return model.to(device), header
