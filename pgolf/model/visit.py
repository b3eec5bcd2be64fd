"""What an evaluation that adapts to its text brings along to one virtual layer, or to the head.

    adapters   y_b <- y_b + B_b A_b x_b: a low-rank map per row b beside a linear map (LoRA, PR 1530, 1855)
    past       keys and values of the tokens before those that are run, without gradient

Beside `o` stands the map of the attention's input, not of its output, as published. The forward pass has one seam:
`Context.visit`. Where it is None, no operation is added.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Adapter = tuple[Tensor, Tensor]
"""A [B, r, in] and B [B, out, r], in the dtype of their map's output; a factor alpha / r is part of B."""


class Visit:
    """Adapters by name (q, k, v, o, mlp, head), and a memory of keys and values if `remember`."""

    def __init__(
        self, adapters: Mapping[str, Adapter], remember: bool = False, exact: torch.dtype = torch.float32
    ) -> None:
        """`exact`: the dtype in which the head and its adapter multiply, at least float32."""
        self.adapters, self.remember, self.exact = adapters, remember, exact
        self.past: tuple[Tensor, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens are remembered."""
        return 0 if self.past is None else self.past[0].size(1)

    def adapt(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        """y [B, T, out], the output of the linear map of this name, plus B A x for x [B, T, in]."""
        if name not in self.adapters:
            return y
        a, b = self.adapters[name]
        return torch.baddbmm(y, torch.bmm(x, a.mT), b.mT)

    def recall(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The remembered keys and values and then these, [B, P + T, Hkv, D]; they are remembered in turn."""
        if not self.remember:
            return k, v
        if self.past is not None:
            k, v = torch.cat([self.past[0], k], dim=1), torch.cat([self.past[1], v], dim=1)
        self.past = k.detach(), v.detach()
        return k, v

    def keep(self, rows: int, tokens: int) -> None:
        """Forget all but the last rows and the first tokens."""
        if self.past is not None:
            self.past = self.past[0][-rows:, :tokens], self.past[1][-rows:, :tokens]
