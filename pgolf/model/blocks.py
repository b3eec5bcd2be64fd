"""Attention, MLP and the block that joins them.

    sequential                               parallel (GPT-J form, PR 1412)
    x_in = r0 * x + r1 * x0                  x_in = r0 * x + r1 * x0
    x1 = x_in + a * Attn(norm(x_in) s)       x_out = x_in + a * Attn(norm(x_in) s) + m * MLP(norm(x_in) s)
    x_out = x1 + m * MLP(norm(x1) s)

r is `resid_mix`, a and m are per-channel scales, x0 the normalised embedding, s = 1/sqrt(i + 1) with i the physical
layer, also in repeats. The residual carries x_in, not x. The third form, two lanes, is in `lanes.py`.
Shapes: B rows, T tokens, d width, H query heads, D head dimension, F hidden units.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attention import Segments, attend
from pgolf.model.config import ModelConfig
from pgolf.model.lanes import Lanes, route
from pgolf.model.norm import rms_norm
from pgolf.model.rotary import rotate


class Linear(nn.Module):
    """y = x W^T without bias; the float32 weight [out, in] is cast to the dtype of x at the point of use."""

    def __init__(self, inputs: int, outputs: int, zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        if not zero:  # OrthoInit: gain 1 for every projection, zeros for the two that write to the residual
            nn.init.orthogonal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return F.linear(x, self.weight.to(x.dtype))


def exclusive(y: Tensor, v: Tensor) -> Tensor:
    """XSA (PR 265): remove from each head's output the component along the token's own value vector.

    y <- y - <y, v^> v^,  v^ = v / max(|v|, 1e-12).  y [B, T, H, D], v [B, T, Hkv, D].
    """
    grouped = y.view(*v.shape[:3], -1, v.size(3))  # [B, T, Hkv, H / Hkv, D]
    unit = F.normalize(v, dim=-1, eps=1e-12).unsqueeze(3)
    return torch.addcmul(grouped, (grouped * unit).sum(-1, keepdim=True), unit, value=-1).flatten(2, 3)


def sparse_gate(y: Tensor, n: Tensor, weight: Tensor, scale: float) -> Tensor:
    """y_h <- sigmoid(scale w_h . n[:window]) y_h: a gate per token and head from few channels (PR 1787, 1855).

    y [B, T, H, D], n [B, T, d], the input of the projections, weight [H, window].
    """
    gate = torch.sigmoid(scale * F.linear(n[..., : weight.size(1)], weight.to(n.dtype)))
    return y * gate.unsqueeze(-1)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm, partial RoPE, query gain, exclusive self-attention and output gate."""

    def __init__(self, config: ModelConfig, exclusive_output: bool) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.exclusive_output = exclusive_output
        kv_dim = config.kv_heads * config.head_dim
        self.c_q = Linear(config.dim, config.dim)
        self.c_k = Linear(config.dim, kv_dim)
        self.c_v = Linear(config.dim, kv_dim)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        self.gate_scale = config.attn_gate_scale
        self.attn_gate_w = None
        if config.attn_gate == "sparse":
            self.attn_gate_w = nn.Parameter(torch.zeros(config.heads, config.gate_window))

    def forward(self, n: Tensor, tables: tuple[Tensor, Tensor], segments: Segments | None) -> Tensor:
        """n [B, T, d], the normalised and scaled block input, to [B, T, d]."""
        q, k, v = (project(n).view(*n.shape[:2], -1, self.head_dim) for project in (self.c_q, self.c_k, self.c_v))
        q, k = rotate(rms_norm(q), *tables), rotate(rms_norm(k), *tables)
        q = q * self.q_gain.to(q.dtype)[:, None]
        y = attend(q, k, v, segments)
        if self.exclusive_output:
            y = exclusive(y, v)
        if self.attn_gate_w is not None:
            y = sparse_gate(y, n, self.attn_gate_w, self.gate_scale)
        return self.proj(y.flatten(2))  # type: ignore[no-any-return]


def leaky_relu_squared(p: Tensor, slope: float) -> Tensor:
    """LeakyReLU(slope)^2: p^2 for p > 0, (slope p)^2 otherwise (PR 493). Not monotone."""
    return F.leaky_relu(p, slope).square()


class MLP(nn.Module):
    """down(LeakyReLU(slope)(up x)^2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slope = config.leaky_slope
        self.fc = Linear(config.dim, config.mlp_hidden)
        self.proj = Linear(config.mlp_hidden, config.dim, zero=True)

    def forward(self, n: Tensor) -> Tensor:
        """n [B, T, d] to [B, T, d]."""
        return self.proj(leaky_relu_squared(self.fc(n), self.slope))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One physical layer; see the module's diagram."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        late = config.parallel_from is not None and index >= config.parallel_from
        self.parallel = late and config.parallel == "gptj"
        self.in_lanes = late and config.parallel == "lanes"
        self.scale = 1 / math.sqrt(index + 1) if config.ln_scale else 1.0
        self.attn = Attention(config, exclusive_output=index >= config.layers - config.xsa_layers)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(config.dim), torch.zeros(config.dim)]))

    def forward(self, x: Tensor, x0: Tensor, tables: tuple[Tensor, Tensor], segments: Segments | None) -> Tensor:
        """x, x0 [B, T, d] to [B, T, d]."""
        x = self.mix(x, x0)
        n = rms_norm(x) * self.scale
        after = torch.addcmul(x, self.attn(n, tables, segments), self.attn_scale.to(x.dtype))
        if not self.parallel:
            n = rms_norm(after) * self.scale
        return torch.addcmul(after, self.mlp(n), self.mlp_scale.to(x.dtype))

    def mix(self, x: Tensor, x0: Tensor) -> Tensor:
        """x_in = r0 * x + r1 * x0."""
        r0, r1 = self.resid_mix.to(x.dtype)
        return torch.addcmul(x * r0, x0, r1)

    def forward_lanes(
        self, lanes: Lanes, x0: Tensor, routing: tuple[Tensor, Tensor], tables: tuple[Tensor, Tensor],
        segments: Segments | None,
    ) -> Lanes:  # fmt: skip
        """The two-lane form; `routing` holds the P [2, 2] and the rho [2] of this layer."""
        a = self.attn(rms_norm(self.mix(lanes.attention, x0)) * self.scale, tables, segments)
        m = self.mlp(rms_norm(lanes.mlp) * self.scale)
        return route(lanes, a * self.attn_scale.to(a.dtype), m * self.mlp_scale.to(m.dtype), *routing)
