"""Attention and the block that joins it with an MLP.

    sequential                               parallel (GPT-J form, PR 1412)
    x_in = r0 * x + r1 * x0                  x_in = r0 * x + r1 * x0
    x1 = x_in + a * Attn(norm(x_in) s)       x_out = x_in + a * Attn(norm(x_in) s) + m * MLP(norm(x_in) s)
    x_out = x1 + m * MLP(norm(x1) s)

r is `resid_mix`, a and m are per-channel scales, x0 the normalised embedding, s = 1/sqrt(i + 1) with i the physical
layer, also in repeats. The residual carries x_in, not x. The third form, two lanes, is in `lanes.py`.

Rejected by PR 2071's study: `norm: peri` puts a norm on Attn(..) and MLP(..) too; `norm: hybrid` has one on the values
and x_out = norm(x1 + m * MLP(x1 s)).
Shapes: B rows, T tokens, d width, H query heads, D head dimension.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attention import attend
from pgolf.model.config import ModelConfig
from pgolf.model.context import Context
from pgolf.model.linear import Linear
from pgolf.model.mlp import build_mlp
from pgolf.model.norm import rms_norm
from pgolf.model.rotary import rotate

if TYPE_CHECKING:
    from pgolf.model.lanes import Lanes


def exclusive(y: Tensor, v: Tensor) -> Tensor:
    """XSA (PR 265): remove from each head's output the component along the token's own value vector.

    y <- y - <y, v^> v^,  v^ = v / max(|v|, 1e-12).  y [B, T, H, D], v [B, T, Hkv, D].
    """
    grouped = y.view(*v.shape[:3], -1, v.size(3))  # [B, T, Hkv, H / Hkv, D]
    unit = F.normalize(v, dim=-1, eps=1e-12).unsqueeze(3)
    return torch.addcmul(grouped, (grouped * unit).sum(-1, keepdim=True), unit, value=-1).flatten(2, 3)


class Attention(nn.Module):
    """Grouped-query attention with QK-norm, partial RoPE, query gain, exclusive self-attention and output gate."""

    attn_gate_w: Tensor
    attn_gate_b: Tensor
    gate_scale: float
    vr_lambda: Tensor
    vr_alpha: float

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.width, self.head_dim = config.dim, config.head_dim
        self.exclusive_output = index >= config.layers - config.xsa_layers
        self.norm_values = config.norm == "hybrid"
        self.gate, outputs = None, config.dim
        if config.attn_gate != "none":
            from pgolf.model.gates import install_gate, query_outputs

            self.gate, outputs = install_gate(self, config), query_outputs(config)
        self.c_q = Linear(config.dim, outputs)
        self.c_k = Linear(config.dim, config.kv_dim)
        self.c_v = Linear(config.dim, config.kv_dim)
        self.proj = Linear(config.dim, config.dim, zero=True)
        self.q_gain = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        self.sharpness = 1.0
        if config.rope_scaling == "yarn":
            from pgolf.model.yarn import sharpness

            self.sharpness = sharpness(config.rope_factor)
        self.mix_values = None
        if config.value_residual in ("learned", "fixed"):
            from pgolf.model.value_residual import install_mix

            self.mix_values = install_mix(self, config)
        self.differ = None
        if config.attention == "differential":
            from pgolf.model.differential import differential, initial_lambda

            self.differ = differential
            self.diff_lambda = nn.Parameter(torch.full((config.heads,), initial_lambda(index)))

    def raw_values(self, n: Tensor, context: Context) -> Tensor:
        """The values [B, T, Hkv, D] of n [B, T, d] by themselves."""
        v = self.c_v(n)
        if context.visit is not None:
            v = context.visit.adapt("v", v, n)
        return self._heads(v if context.values is None else v + context.values)

    def values(self, n: Tensor, context: Context) -> Tensor:
        """The values [B, T, Hkv, D] that are attended to."""
        v = self.raw_values(n, context)
        if self.mix_values is not None and context.first is not None:
            v = self.mix_values(self, v, context.first)
        return rms_norm(v) if self.norm_values else v

    def forward(self, n: Tensor, context: Context, n_v: Tensor | None = None) -> Tensor:
        """n [B, T, d], the normalised and scaled block input, to [B, T, d]; values are those of n_v if given."""
        query, key = self.c_q(n), self.c_k(n)
        if context.visit is not None:
            query, key = context.visit.adapt("q", query, n), context.visit.adapt("k", key, n)
        q, k = self._heads(query[..., : self.width]), self._heads(key)
        v = self.values(n if n_v is None else n_v, context)
        q, k = rotate(rms_norm(q), *context.tables), rotate(rms_norm(k), *context.tables)
        q = q * (self.q_gain * self.sharpness).to(q.dtype)[:, None]
        keys, values = (k, v) if context.visit is None else context.visit.recall(k, v)
        if self.differ is None:
            y = attend(q, keys, values, context.segments)
        else:
            y = self.differ(q, keys, values, self.diff_lambda, context.segments)
        if self.exclusive_output:
            y = exclusive(y, v)
        if self.gate is not None:
            y = self.gate(self, y, n, query)
        out: Tensor = self.proj(y.flatten(2))
        return out if context.visit is None else context.visit.adapt("o", out, n)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


class Block(nn.Module):
    """One physical layer; see the module's diagram."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        late = config.parallel_from is not None and index >= config.parallel_from
        self.parallel = late and config.parallel == "gptj"
        self.in_lanes = late and config.lanes
        self.peri, self.hybrid = config.norm == "peri", config.norm == "hybrid"
        self.attn = Attention(config, index)
        self.mlp = build_mlp(config)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.resid_mix = nn.Parameter(torch.stack([torch.ones(config.dim), torch.zeros(config.dim)]))
        if config.init == "overtone":
            from pgolf.model.overtone import phased_mix

            self.resid_mix = nn.Parameter(phased_mix(index, config.layers, config.dim))
        self.lane_step = None
        if self.in_lanes:
            from pgolf.model.lanes import lane_form

            self.lane_step = lane_form(config).step
        self.mix_input = self.mlp_gate = self.token_gate = None
        if config.value_residual == "gated":
            from pgolf.model.value_residual import gated

            self.mix_input, self.vrl_lambda = gated, nn.Parameter(torch.tensor([0.5]))
        if config.mlp_gate:
            from pgolf.model.block_gates import mlp_gate

            self.mlp_gate, self.mlp_gate_w = mlp_gate, nn.Parameter(torch.zeros(config.heads, config.gate_window))
        if config.token_gate:
            from pgolf.model.block_gates import token_gate

            self.token_gate = token_gate
            self.dtg_gate_w = nn.Parameter(torch.zeros(1, config.dim))
            self.dtg_gate_b = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [B, T, d] to [B, T, d], sequential or parallel."""
        x = self.mix(x, context.x0)
        n = rms_norm(x) * context.scale
        after = torch.addcmul(x, self.attend(x, n, context), self.attn_scale.to(x.dtype))
        if not self.parallel:
            n = (after if self.hybrid else rms_norm(after)) * context.scale
        out = torch.addcmul(after, self.feed(n, context), self.mlp_scale.to(x.dtype))
        if self.token_gate is not None:
            return self.token_gate(x, out, self.dtg_gate_w, self.dtg_gate_b)
        return rms_norm(out) if self.hybrid else out

    def forward_lanes(self, lanes: "Lanes", rows: tuple[Tensor, ...], context: Context) -> "Lanes":
        """The two-lane form; `rows` are this layer's routing parameters."""
        assert self.lane_step is not None
        return self.lane_step(self, lanes, rows, context)

    def mix(self, x: Tensor, x0: Tensor) -> Tensor:
        """x_in = r0 * x + r1 * x0."""
        r0, r1 = self.resid_mix.to(x.dtype)
        return torch.addcmul(x * r0, x0, r1)

    def first_values(self, x: Tensor, context: Context) -> Tensor:
        """The values [B, T, Hkv, D] that this layer computes for x [B, T, d]: v_0 of a value residual."""
        return self.attn.raw_values(rms_norm(self.mix(x, context.x0)) * context.scale, context)

    def attend(self, x: Tensor, n: Tensor, context: Context) -> Tensor:
        """The attention output for the mixed input x and n = norm(x) s, [B, T, d]."""
        n_v = None
        if self.mix_input is not None and context.first is not None:
            n_v = rms_norm(self.mix_input(x, context.first, self.vrl_lambda)) * context.scale
        a = self.attn(n, context, n_v)
        return rms_norm(a) if self.peri else a

    def feed(self, n: Tensor, context: Context) -> Tensor:
        """The MLP output for n [B, T, d]."""
        m: Tensor = self.mlp(n)
        if context.visit is not None:
            m = context.visit.adapt("mlp", m, n)
        if self.mlp_gate is not None:
            m = self.mlp_gate(m, n, self.mlp_gate_w)
        return rms_norm(m) if self.peri else m
