"""Neurons and head dimensions in the order that is cheapest to store (`pgolf.codec.canonical`)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.codec.canonical import canonical_order
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig

FREE = {
    "activation": ("leaky_relu2",),
    "mlp_rank": (1.0,),
    "mlp_blocks": (1,),
    "attention": ("softmax",),
    "attn_gate": ("none", "per_head", "dense", "sparse", "window"),
    "attn_gate_query": (False,),
    "value_residual": ("none",),
}
"""Values of the model's parameters under which a layer's neurons and head dimensions may be reordered by themselves."""


def row_orders(scales: Mapping[str, Tensor], widths: Mapping[str, int], model: ModelConfig) -> dict[str, Tensor]:
    """The order [m] in which `canonical` will put the rows of matrices with these scales [m] and numbers of columns."""
    stored: dict[str, Tensor] = {}
    for name, scale in scales.items():
        rows = torch.arange(len(scale), dtype=torch.int16)[:, None].expand(-1, widths[name])
        stored |= {f"{name}.q": rows, f"{name}.scale": scale.cpu()}
    ordered = canonical(stored, model)
    return {name: ordered[f"{name}.q"][:, 0].long().to(scale.device) for name, scale in scales.items()}


def canonical(tensors: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Stored tensors by key in canonical order. InputError for a model in which something else knows the order."""
    for name, allowed in FREE.items():
        if (value := getattr(model, name)) not in allowed:
            raise InputError(
                f"`quantize.canonical` cannot reorder a model with `model.{name}: {value}`, whose layers depend on the "
                "order: set it to false"
            )
    if model.value_embed.last:
        raise InputError("`quantize.canonical` cannot reorder values that `model.value_embed` adds to: set it to false")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    ordered = canonical_order(arrays, model.heads, model.kv_heads, model.rope_dims)
    return {name: torch.from_numpy(array) for name, array in ordered.items()}
