"""Matrix products of 8-bit floats: queries, keys and values, up, down, the gradients through down and up, and up's own.

    weights     float8_e4m3fn times s = max |w| / 448 of the matrix
    stream, f   float8_e4m3fn as they are, clipped to 448: normal from 2^-6 on, and what rows of h differ by is given
                back by the factor of the row
    g           float8_e4m3fn times r = max |g| / 448 of the row (`pgolf.kernels.rounded_rows`): tokens' gradients
                differ by orders of magnitude, and e5m2, which would hold them without, has a bit less
dp          float8_e4m3fn times r / K of the row, K = `OF_HIDDEN`: hidden units' gradient is nowhere wider. Its product
            writes it twice, in rows for dp W1 and across them for dW1 = dp8^T (h times the factors of rows)
h of dW1    float8_e4m3fn times a scale of the tensor (`pgolf.kernels.transposed`)

Each operand has 3 bits of fraction; sums are float32. The other gradients stay in bfloat16: those of the other weights
would need more transposed copies than the product saves. Formats: Micikevicius et al. 2022.
"""

from typing import NamedTuple

import torch
from torch import Tensor

KIND = torch.float8_e4m3fn
LARGEST = 448.0
"""Of this kind."""
LEAST = 1e-12
"""Of a matrix's largest entry: projections start at zero."""
OF_HIDDEN = 2.0**-15
"""Of hidden units' gradients, as products of rows and weights whose largest entries are 448: their root mean square is
then 0.7 to 5 in the passes of a trained record-1855.
"""


class Eighth(NamedTuple):
    """A matrix [rows, inner], contiguous, and the factor that it stands for with it."""

    values: Tensor
    scale: Tensor
    """[], float32."""
