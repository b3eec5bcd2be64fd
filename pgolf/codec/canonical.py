"""Free choices of a model made so that it is smallest: orders of neurons and of head dimensions.

A permutation of a block's MLP neurons (rows of `mlp.fc`, columns of `mlp.proj`), of the value dimensions of a head
(rows of `c_v`, columns of `proj` in every head that shares it) or of the dimensions behind the rotary ones (rows of
`c_q` and `c_k`) changes the model's function by rounding alone. In order of falling row scale the scales are a smooth
curve, which costs little: most of the log2(n!) bits of each order are saved.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = dict[str, Array]

ROWS = (".q", ".scale", ".lqA_a", ".lqA", ".lqAs")
"""Suffixes of what follows a matrix's rows."""
COLUMNS = (".q", ".cols", ".lqB")
"""Suffixes of what follows a matrix's columns; asymmetric factors (`.lqB_a`) have scales by position and cannot."""


def canonical_order(stored: Mapping[str, Array], heads: int, kv_heads: int, rotary: int) -> Tensors:
    """The same model with neurons and head dimensions in canonical order.

    `stored` has keys as in `pgolf.quant.state`; `rotary` is the number of rotary dimensions at the start of each head.
    What has other shapes, and matrices whose columns cannot move, stay as they are.
    """
    tensors = dict(stored)
    blocks = {found[0] for key in stored if (found := re.match(r"blocks\.\d+\.", key))}
    for block in sorted(blocks):
        _neurons(tensors, f"{block}mlp.fc.weight", f"{block}mlp.proj.weight")
        names = [f"{block}attn.{role}.weight" for role in ("c_q", "c_k", "c_v", "proj")]
        if all(f"{name}.scale" in tensors for name in names):
            _head_dimensions(tensors, names, heads, kv_heads, rotary)
    return tensors


def _falling(scale: Array) -> Array:
    return np.argsort(-scale.astype(np.float64), kind="stable")


def _neurons(tensors: Tensors, up: str, down: str) -> None:
    if f"{up}.scale" in tensors and f"{down}.q" in tensors and f"{down}.lqB_a" not in tensors:
        order = _falling(tensors[f"{up}.scale"])
        _move_rows(tensors, up, order)
        _move_columns(tensors, down, order)


def _head_dimensions(tensors: Tensors, names: list[str], heads: int, kv_heads: int, rotary: int) -> None:
    q, k, v, out = names
    size = len(tensors[f"{k}.scale"]) // kv_heads
    shared = np.repeat(np.arange(kv_heads), heads // kv_heads)  # key and value head of each query head
    if f"{out}.lqB_a" not in tensors:
        order = np.stack([_falling(part) for part in tensors[f"{v}.scale"].reshape(kv_heads, size)])
        _move_rows(tensors, v, (order + size * np.arange(kv_heads)[:, None]).ravel())
        _move_columns(tensors, out, (order[shared] + size * np.arange(heads)[:, None]).ravel())
    free = np.stack([_falling(part[rotary:]) + rotary for part in tensors[f"{k}.scale"].reshape(kv_heads, size)])
    order = np.concatenate([np.tile(np.arange(rotary), (kv_heads, 1)), free], axis=1)
    _move_rows(tensors, k, (order + size * np.arange(kv_heads)[:, None]).ravel())
    _move_rows(tensors, q, (order[shared] + size * np.arange(heads)[:, None]).ravel())


def _move_rows(tensors: Tensors, name: str, order: Array) -> None:
    for suffix in ROWS:
        if f"{name}{suffix}" in tensors:
            tensors[f"{name}{suffix}"] = np.ascontiguousarray(tensors[f"{name}{suffix}"][order])


def _move_columns(tensors: Tensors, name: str, order: Array) -> None:
    for suffix in COLUMNS:
        if f"{name}{suffix}" in tensors:
            tensors[f"{name}{suffix}"] = np.ascontiguousarray(tensors[f"{name}{suffix}"][..., order])
