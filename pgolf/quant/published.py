"""Published weights under this project's names: what a file holds, checked tensor by tensor against the model.

Quantized files (PR 1797 to 1855) have our keys (`pgolf.quant.state`); what a scheme must be to give them is read off
their shapes and codes. Full-precision ones may hold the matrices of all L layers in banks:

    qo_bank [2L, d, d]           layer i: attn.c_q, L + i: attn.proj
    kv_bank [2L, d_kv, d]        layer i: attn.c_k, L + i: attn.c_v
    mlp_up_bank [L, F, d]        mlp.fc
    mlp_down_bank [L, d, F]      mlp.proj
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.errors import InputError
from pgolf.quant.artifact import layout_of
from pgolf.quant.config import GridConfig, LqerConfig, QuantizeConfig
from pgolf.quant.lqer import A_BITS, ASYMMETRIC, B_BITS, SYMMETRIC
from pgolf.quant.policy import Shapes, table
from pgolf.quant.state import corrected_names, split_key

BANKS = {
    "qo_bank": ("attn.c_q", "attn.proj"),
    "kv_bank": ("attn.c_k", "attn.c_v"),
    "mlp_up_bank": ("mlp.fc",),
    "mlp_down_bank": ("mlp.proj",),
}
"""Bank -> the modules whose matrices it holds, each for all layers."""
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
"""What DistributedDataParallel and torch.compile put before the names."""
Form = tuple[str, tuple[int, ...]]
"""Element type and shape."""
SHOWN = 20
"""Mismatches that one error message lists."""


class Adopted(NamedTuple):
    """A published quantized model in this project's terms."""

    tensors: dict[str, Tensor]
    config: QuantizeConfig
    """The scheme that gives these tensors; `k_sigma` is what the spread of the codes implies."""


def is_quantized(keys: Iterable[str]) -> bool:
    """Whether a file holds codes rather than full-precision weights."""
    return any(split_key(key)[1] == ".q" for key in keys)


def unbank(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with one tensor per matrix, float32; names without wrappers, banks taken apart.

    Raises InputError for a bank that does not divide into layers and for a name that occurs twice.
    """
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = WRAPPERS.sub("", key)
        parts = _layers(name, tensor) if name in BANKS else {name: tensor}
        if twice := sorted(set(parts) & set(state)):
            raise InputError(f"the file holds {twice[0]} twice (the second time in {key})")
        state |= {part: value.float() for part, value in parts.items()}
    return state


def _layers(bank: str, tensor: Tensor) -> dict[str, Tensor]:
    modules = BANKS[bank]
    if tensor.ndim != 3 or len(tensor) % len(modules):
        raise InputError(f"{bank} has shape {tuple(tensor.shape)}; it must be [{len(modules)} x layers, out, in]")
    layers = len(tensor) // len(modules)
    return {
        f"blocks.{layer}.{module}.weight": tensor[position * layers + layer]
        for position, module in enumerate(modules)
        for layer in range(layers)
    }


def adopt_full(tensors: Mapping[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
    """The weights, float32, of a model with these parameter shapes, from a published state dict.

    Raises one InputError that lists every tensor that is missing, unknown, of another shape or not finite.
    """
    state = unbank(tensors)
    found = {name: ("float32", tuple(tensor.shape)) for name, tensor in state.items()}
    wrong = _differences(found, {name: ("float32", shape) for name, shape in shapes.items()})
    wrong += [f"{name} holds NaN or infinity" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    _refuse(wrong)
    return {name: state[name] for name in shapes}


def adopt_quantized(tensors: Mapping[str, Tensor], shapes: Shapes, kinds: Mapping[str, str] | None = None) -> Adopted:
    """The stored tensors of a model with these parameter shapes, and the scheme that they follow.

    `kinds` are the published descriptions, such as "gptq (int6)+lqer_asym", by parameter; without them a class has the
    least bits that hold its codes. Raises one InputError that lists every mismatch.
    """
    bits, wrong = _described_bits(kinds, tensors) if kinds else ({}, [])
    config = _scheme(tensors, shapes, bits)
    layout = layout_of(shapes, config, corrected_names(tensors))
    expected = {entry.key: (entry.dtype, entry.shape) for entry in layout}
    found = {key: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for key, t in tensors.items()}
    wrong += _differences(found, expected)
    wrong += _out_of_range(tensors, config)
    _refuse(wrong)
    return Adopted({key: tensors[key] for key in expected}, config)


def _matrices(tensors: Mapping[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """The int8 matrices of one kind by parameter; what is none will be refused for its form."""
    return {
        name: tensor
        for key, tensor in tensors.items()
        for name, kind in [split_key(key)]
        if kind == suffix and tensor.dtype == torch.int8 and tensor.ndim == 2 and tensor.numel()
    }


def _scheme(tensors: Mapping[str, Tensor], shapes: Shapes, bits: Mapping[str, int]) -> QuantizeConfig:
    """The scheme whose layout and grids these tensors follow, if any does."""
    default = QuantizeConfig()
    codes = _matrices(tensors, ".q")
    grids: dict[str, GridConfig] = {}
    for label, pattern, grid in table(default):
        members = [tensor for name, tensor in codes.items() if pattern.search(name)]
        grids[label] = _grid(members, bits.get(label)) if members else grid
    small_numel = default.small_numel
    if min((tensor.numel() for tensor in codes.values()), default=math.inf) <= small_numel:  # a small model
        classes = [pattern for _, pattern, _ in table(default)]
        small = [shape for name, shape in shapes.items() if not any(pattern.search(name) for pattern in classes)]
        small_numel = max(math.prod(shape) for shape in small)
    return QuantizeConfig(
        embed=grids["embed"],
        attn=grids["attn"],
        mlp=grids["mlp"],
        small_numel=small_numel,
        gate_int8=any(split_key(key)[1] == ".gq" for key in tensors),
        lqer=_lqer(tensors),
    )


def _grid(codes: Sequence[Tensor], bits: int | None) -> GridConfig:
    """Grid of a class: the given or the least bits, and k = c / std, the codes' variance less that of rounding."""
    clip = GridConfig(bits=bits or _least_bits(codes, 2)).clip
    variance = sum(float(tensor.double().square().sum()) for tensor in codes) / sum(t.numel() for t in codes)
    k_sigma = round(clip / math.sqrt(max(variance - 1 / 12, 1 / 12)), 2)
    return GridConfig(bits=clip.bit_length() + 1, k_sigma=k_sigma)


def _least_bits(codes: Iterable[Tensor], least: int) -> int:
    """Width of the narrowest symmetric grid, of at least `least` bits, that holds the codes."""
    largest = max((int(tensor.int().abs().max()) for tensor in codes), default=0)
    return min(8, max(least, largest.bit_length() + 1))


def _lqer(tensors: Mapping[str, Tensor]) -> LqerConfig:
    default, corrected = LqerConfig(), corrected_names(tensors)
    if not corrected:
        return default
    a, b = (_matrices(tensors, suffix) for suffix in (ASYMMETRIC[0], ASYMMETRIC[2]))
    symmetric = [_matrices(tensors, suffix) for suffix in (SYMMETRIC[0], SYMMETRIC[2])]
    scales = {name: tensors.get(f"{name}{ASYMMETRIC[3]}") for name in b}
    groups = [b[name].numel() // scale.numel() for name, scale in scales.items() if scale is not None and scale.numel()]
    ranks = [tensor.size(1) for tensor in (*a.values(), *symmetric[0].values())]
    return LqerConfig(
        top_k=len(corrected),
        rank=max(ranks, default=default.rank),
        asymmetric=bool(a),
        factor_bits=_least_bits([*symmetric[0].values(), *symmetric[1].values()], default.factor_bits),
        group=max([*groups, 1]) if groups else default.group,
    )


def _described_bits(kinds: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], list[str]]:
    """Bits per class as described, and what the descriptions say that the tensors do not show."""
    found: dict[str, Counter[int]] = {}
    wrong = []
    for name, kind in kinds.items():
        match = re.match(r"gptq \(int([2-8])\)", kind)
        forms = {".q": match is not None, ".gq": kind.startswith("gate_int8"), "": kind.startswith("passthrough")}
        forms |= {ASYMMETRIC[0]: "+lqer_asym" in kind, SYMMETRIC[0]: "+lqer" in kind and "+lqer_asym" not in kind}
        for suffix, described in forms.items():
            if described != (name + suffix in tensors):
                wrong.append(
                    f"{name} is described as `{kind}`, but {name}{suffix} is {'missing' if described else 'there'}"
                )
        for label, pattern, _ in table(QuantizeConfig()):
            if match and pattern.search(name):
                found.setdefault(label, Counter())[int(match[1])] += 1
    wrong += [f"class `{label}` mixes widths: {dict(widths)}" for label, widths in found.items() if len(widths) > 1]
    return {label: widths.most_common(1)[0][0] for label, widths in found.items()}, wrong


def _differences(found: Mapping[str, Form], expected: Mapping[str, Form]) -> list[str]:
    wrong = [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} is not a tensor of this model" for key in found if key not in expected]
    return wrong + [
        f"{key} is {found[key][0]} {list(found[key][1])}, the model needs {form[0]} {list(form[1])}"
        for key, form in expected.items()
        if key in found and found[key] != form
    ]


def _out_of_range(tensors: Mapping[str, Tensor], config: QuantizeConfig) -> list[str]:
    """Codes outside their grid, and scales and weights that are not finite."""
    factor = 2 ** (config.lqer.factor_bits - 1) - 1
    ranges = {".gq": (-127, 127), SYMMETRIC[0]: (-factor, factor), SYMMETRIC[2]: (-factor, factor)}
    for suffix, bits in ((ASYMMETRIC[0], A_BITS), (ASYMMETRIC[2], B_BITS)):
        ranges[suffix] = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    wrong = []
    for key, tensor in tensors.items():
        if tensor.is_floating_point():
            if not torch.isfinite(tensor).all():
                wrong.append(f"{key} holds NaN or infinity")
            continue
        name, suffix = split_key(key)
        clips = [grid.clip for _, pattern, grid in table(config) if suffix == ".q" and pattern.search(name)]
        low, high = (-clips[0], clips[0]) if clips else ranges.get(suffix, (-128, 127))
        if tensor.numel() and not (low <= int(tensor.min()) and int(tensor.max()) <= high):
            wrong.append(f"{key} holds {int(tensor.min())} to {int(tensor.max())}, beyond {low} to {high}")
    return wrong


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        shown = [f"  {line}" for line in wrong[:SHOWN]] + [f"  and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
        raise InputError(
            "the file does not fit the `model` section of params.yaml and the vocabulary of the tokens; choose the "
            "preset that it belongs to (`pgolf preset use`):\n" + "\n".join(shown)
        )
