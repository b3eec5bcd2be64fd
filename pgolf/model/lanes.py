"""The two-lane decoder: attention and MLP of a layer read different residual streams (PR 1530, 1855).

    A = a * Attn(norm(r0 * lane0 + r1 * x0) s)      M = m * MLP(norm(lane1) s)
    lane0' = rho_0 lane0 + P_00 A + P_10 M
    lane1' = rho_1 lane1 + P_01 A + P_11 M

P[source, destination] and rho are learned per physical layer; both lanes are updated from the old ones. They start
equal where the split is, skips go into lane 0 only, and their mean is the final state.
"""

from typing import NamedTuple

from torch import Tensor


class Lanes(NamedTuple):
    """The stream that attention reads and the one that the MLP reads, each [B, T, d]."""

    attention: Tensor
    mlp: Tensor

    def mean(self) -> Tensor:
        """The state after the last layer."""
        return (self.attention + self.mlp) * 0.5


def route(lanes: Lanes, a: Tensor, m: Tensor, post: Tensor, carry: Tensor) -> Lanes:
    """The new lanes from the sublayer outputs a, m [B, T, d]; post [2, 2] is P, carry [2] is rho."""
    post, carry = post.to(a.dtype), carry.to(a.dtype)
    first = carry[0] * lanes.attention + post[0, 0] * a + post[1, 0] * m
    second = carry[1] * lanes.mlp + post[0, 1] * a + post[1, 1] * m
    return Lanes(first, second)
