"""Matrix products of 8-bit floats: y = (A8 B8^T) s_A s_B, sums in float32, the result in bfloat16.

    weights     float8_e4m3fn, s = max |w| / 448 per matrix
    norms       float8_e4m3fn, |norm(x)| <= sqrt(d), so s = sqrt(d) / 448 without looking; times the layer's scale
    gradients   float8_e5m2 (2^-16 to 57344), s = 1 / (`GRADIENT` T) for the mean loss of T tokens, without looking

Static scales cost no pass over the data; e5m2 has 31 binary orders of room for what they miss, and clips beyond. Weight
gradients are taken in bfloat16: their operands would have to be transposed. Formats: Micikevicius et al. 2022.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 448.0
"""Of float8_e4m3fn."""
LEAST = 1e-12
"""Of a matrix's largest entry: projections start at zero."""
GRADIENT = 16.0
"""Factor on gradients besides the number of tokens."""


class Eighth(NamedTuple):
    """A matrix [rows, inner], contiguous, and the factor that it stands for with it."""

    values: Tensor
    scale: Tensor
    """[], float32."""


def round_weight(w: Tensor) -> Eighth:
    """w [rows, inner] with its largest entry at the top of the range."""
    scale = w.abs().amax().clamp_min(LEAST).float() / LARGEST
    return Eighth((w / scale).to(torch.float8_e4m3fn).contiguous(), scale)


def product(a: Eighth, b: Eighth) -> Tensor:
    """a b^T [rows of a, rows of b], bfloat16."""
    return torch._scaled_mm(
        a.values, b.values.T, scale_a=a.scale, scale_b=b.scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )  # fmt: skip
