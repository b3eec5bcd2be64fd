"""The stored form of a model: tensors by key, as in the published artifacts since PR 1797.

NAME.q, NAME.scale     codes int8 [m, n] and row scales float16 [m] of a matrix; ternary ones are packed, in groups
NAME.cols              its column scales float16 [n], where the scheme has them
NAME.rot               nothing, float16 [0]: the rows are mixed by a Hadamard matrix (`pgolf.quant.rotate`)
NAME.lqA_a, ...        its low-rank correction, where it has one (`pgolf.quant.lqer`)
NAME.gq, NAME.gs       int8 rows of an attention gate
NAME                   float16, every other tensor
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from pgolf.quant.grid import dequantize
from pgolf.quant.lqer import ASYMMETRIC, SYMMETRIC, correction

SUFFIXES = (".q", ".scale", ".cols", ".rot", ".gq", ".gs", *ASYMMETRIC, *SYMMETRIC)
"""What may follow a parameter's name in a key."""


def split_key(key: str) -> tuple[str, str]:
    """Parameter name and suffix of a key; the suffix of a float16 tensor is empty."""
    name, dot, last = key.rpartition(".")
    return (name, dot + last) if dot + last in SUFFIXES else (key, "")


def corrected_names(keys: Iterable[str]) -> set[str]:
    """Names of the matrices with a low-rank correction."""
    return {name for name, suffix in map(split_key, keys) if suffix in (ASYMMETRIC[0], SYMMETRIC[0])}


def restore(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dequantized parameters, float32, by name: W^ = (T) q s (c) + (A^ B^), in brackets what is optional."""
    state = {}
    for key, tensor in stored.items():
        name, suffix = split_key(key)
        if suffix == ".q":
            state[name] = _codes(tensor, stored[f"{name}.scale"])
            if (columns := stored.get(f"{name}.cols")) is not None:
                state[name] *= columns.float()
            if f"{name}.rot" in stored:
                from pgolf.quant.rotate import hadamard

                state[name] = hadamard(state[name])
            if (low_rank := correction(stored, name)) is not None:
                state[name] += low_rank
        elif suffix == ".gq":
            state[name] = dequantize(tensor, stored[f"{name}.gs"])
        elif not suffix:
            state[name] = tensor.float()
    return state


def _codes(codes: Tensor, scale: Tensor) -> Tensor:
    """W^ [m, n] of codes with a scale for each row, or for each group of a row."""
    if scale.ndim == 1:
        return dequantize(codes, scale)
    from pgolf.quant.ternary import restored

    return restored(codes, scale)
