"""The shipped model: quantized tensors in a container, from which alone the model is rebuilt.

The header names what determines every tensor's name, shape and type: the model's shape constants, the vocabulary and
the quantization scheme. The layout is computed from it on both sides and not stored.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pgolf.codec.backends import Codec
from pgolf.codec.container import pack, unpack
from pgolf.codec.layout import Entry
from pgolf.config import build, to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.grid import dequantize
from pgolf.quant.policy import Shapes, resolve

SCHEMA = "pgolf.model"


def parameter_shapes(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in GPT(config, vocab_size).state_dict().items()}


def layout_of(shapes: Shapes, config: QuantizeConfig) -> list[Entry]:
    """Stored tensors in order: codes grouped by the matrix's role in the block, then scales, then small tensors."""
    plan = resolve(shapes, config)
    codes, scales, small = [], [], []
    for name, rule in plan.items():
        if rule.grid is None:
            small.append(Entry("small", name, "float16", shapes[name]))
            continue
        role = re.sub(r"^blocks\.\d+\.", "", name).removesuffix(".weight")
        codes.append(Entry(role, f"{name}.q", "int8", shapes[name]))
        scales.append(Entry("scales", f"{name}.scale", "float16", shapes[name][:1]))
    return codes + scales + small


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
    model = build(ModelConfig, header.get("model"), "model")
    return layout_of(parameter_shapes(model, vocab_size), build(QuantizeConfig, header.get("quantize"), "quantize"))


def encode_model(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    vocab_size: int,
    quantize: QuantizeConfig,
    tokenizer: str,
    codec: Codec,
) -> bytes:
    """The container of a quantized model; `tokenizer` is the SHA-256 of the tokenizer that its tokens come from."""
    header = {
        "schema": SCHEMA,
        "model": to_dict(model),
        "vocab_size": vocab_size,
        "quantize": to_dict(quantize),
        "tokenizer": tokenizer,
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return pack(header, layout_from_header(header), arrays, codec)


def unpack_model(blob: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and stored tensors of a container, as `encode_model` was given them."""
    header, arrays = unpack(blob, layout_from_header)
    return header, {name: torch.from_numpy(array) for name, array in arrays.items()}


def decode_model(blob: bytes, device: torch.device, dtype: torch.dtype) -> tuple[GPT, dict[str, Any]]:
    """The dequantized model, ready to score, and the header of the container."""
    header, stored = unpack_model(blob)
    state = {}
    for name, tensor in stored.items():
        if name.endswith(".q"):
            base = name.removesuffix(".q")
            state[base] = dequantize(tensor, stored[f"{base}.scale"])
        elif not name.endswith(".scale"):
            state[name] = tensor.float()
    with torch.device("meta"):
        model = GPT(build(ModelConfig, header["model"], "model"), header["vocab_size"], dtype)
    model.load_state_dict(state, assign=True)
    return model.to(device), header
