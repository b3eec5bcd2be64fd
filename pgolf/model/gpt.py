"""The language model: tied embedding, U-Net of blocks with depth recurrence, softcapped head (PR 1493, 1855).

    x = x0 = norm(smear(E[ids]))
    encoder: run a block, push its output
    decoder: pop a skip s, x <- g * x + (1 - g) * (w * s) with g = sigmoid(skip_gates[j]), run a block
    logits = softcap * tanh(norm(x) E^T / softcap)

j is the position in the decoder of the current mode, so the same row joins other layers once recurrence is on. From the
first layer in lanes on, x is a pair of streams and the skip goes into the first of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attention import Segments
from pgolf.model.blocks import Block, Linear
from pgolf.model.config import ModelConfig
from pgolf.model.lanes import Lanes
from pgolf.model.norm import rms_norm
from pgolf.model.rotary import rotary_tables
from pgolf.model.smear import smear
from pgolf.model.wiring import wire


class TiedHead(nn.Module):
    """Softcapped logits from the normalised stream and the embedding matrix."""

    def __init__(self, softcap: float) -> None:
        super().__init__()
        self.softcap = softcap

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden [B, T, d], embedding [V, d] to logits [B, T, V] in the dtype of hidden."""
        logits = F.linear(hidden, embedding.to(hidden.dtype))
        return self.softcap * torch.tanh(logits / self.softcap)


class GPT(nn.Module):
    """The model; `looped` switches depth recurrence (on for evaluation and calibration, delayed in training)."""

    def __init__(self, config: ModelConfig, vocab_size: int, dtype: torch.dtype = torch.float32) -> None:
        """Weights are float32; activations run in `dtype`. Initialisation draws from torch's global generator."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.looped = True
        self.wirings = {looped: wire(config, looped) for looped in (False, True)}
        self.tok_emb = nn.Embedding(
            vocab_size, config.dim, _weight=torch.randn(vocab_size, config.dim) * config.embed_std
        )
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        skips = self.wirings[True].skips
        self.skip_weights = nn.Parameter(torch.ones(skips, config.dim))
        self.skip_gates = nn.Parameter(torch.zeros(skips, config.dim))
        if config.lanes:
            self.parallel_post_lambdas = nn.Parameter(torch.ones(config.layers, 2, 2))
            self.parallel_resid_lambdas = nn.Parameter(torch.full((config.layers, 2), config.lane_init))
        if config.smear == "window":
            self.smear_gate = Linear(config.gate_window, 1, zero=True)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        self.head = TiedHead(config.softcap)
        self._cos = self._sin = torch.empty(0)

    def prepare(self, length: int) -> None:
        """Fill the rotary tables for rows of up to `length` tokens (outside a compiled graph)."""
        if self._cos.size(0) < length:
            device = self.tok_emb.weight.device
            cos, sin = rotary_tables(length, self.config.rope_dims, self.config.rope_base, device)
            self._cos, self._sin = cos.to(self.dtype), sin.to(self.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] to the normalised, possibly smeared embedding x0 [B, T, d]."""
        x = F.embedding(ids, self.tok_emb.weight).to(self.dtype)
        if self.config.smear == "window":
            x = smear(x, ids, self.smear_gate.weight, self.smear_lambda)
        return rms_norm(x)

    def hidden(self, ids: Tensor, segments: Segments | None = None) -> Tensor:
        """ids [B, T] to the normalised final state [B, T, d]; `prepare` must have seen T."""
        tables = self._cos[: ids.size(1)], self._sin[: ids.size(1)]
        x = x0 = self.embed(ids)
        lanes: Lanes | None = None
        wiring = self.wirings[self.looped]
        stack: list[Tensor] = []
        for layer in wiring.encoder:
            x = self.blocks[layer](x, x0, tables, segments)
            stack.append(x)
        for position, layer in enumerate(wiring.decoder):
            block = self.blocks[layer]
            if lanes is None and block.in_lanes:
                lanes = Lanes(x, x)
            if stack and position < len(self.skip_weights):
                if lanes is None:
                    x = self._skip(position, x, stack.pop())
                else:
                    lanes = lanes._replace(attention=self._skip(position, lanes.attention, stack.pop()))
            if lanes is None:
                x = block(x, x0, tables, segments)
            else:
                routing = self.parallel_post_lambdas[layer], self.parallel_resid_lambdas[layer]
                lanes = block.forward_lanes(lanes, x0, routing, tables, segments)  # type: ignore[operator]
        return rms_norm(x if lanes is None else lanes.mean())

    def _skip(self, position: int, x: Tensor, skip: Tensor) -> Tensor:
        """g * x + (1 - g) * (w * skip) at a decoder position."""
        gate = torch.sigmoid(self.skip_gates[position]).to(x.dtype)
        return torch.lerp(self.skip_weights[position].to(x.dtype) * skip, x, gate)

    def forward(self, ids: Tensor, segments: Segments | None = None) -> Tensor:
        """ids [B, T] to softcapped logits [B, T, V]."""
        return self.head(self.hidden(ids, segments), self.tok_emb.weight)  # type: ignore[no-any-return]

    def losses(self, ids: Tensor, targets: Tensor, segments: Segments | None = None) -> Tensor:
        """Negative log-likelihood of each target, nats, float32, shape of ids [B, T]."""
        logits = self(ids, segments)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)


def matrix_inputs(config: ModelConfig) -> dict[str, str]:
    """Each weight matrix and the module whose input it multiplies; q, k and v read the same."""
    sources = {"tok_emb.weight": "head"}  # as output matrix: the embedding's own input has no covariance
    for i in range(config.layers):
        block = f"blocks.{i}"
        sources |= {f"{block}.attn.{name}.weight": f"{block}.attn.c_q" for name in ("c_q", "c_k", "c_v")}
        sources |= {f"{block}.{name}.weight": f"{block}.{name}" for name in ("attn.proj", "mlp.fc", "mlp.proj")}
    return sources
