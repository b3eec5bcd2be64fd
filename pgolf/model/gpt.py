"""The language model: tied embedding, U-Net of blocks with depth recurrence, softcapped head (PR 1493, 1855).

    x = x0 = norm(smear(E[ids]))
    encoder: run a block, push its output
    decoder: pop a skip s, x <- g * x + (1 - g) * (w * s) with g = sigmoid(skip_gates[j]), run a block
    logits = softcap * tanh(norm(x) E^T / softcap)

j is the position in the decoder of the current mode, so the same row joins other layers once recurrence is on. With
`skips: plain` (baseline to PR 635) x <- x + w * s. From the first layer in lanes on, x is a pair of streams.
What the configuration does not ask for is neither built nor imported: a submission ships without it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.attention import Segments
from pgolf.model.blocks import Block
from pgolf.model.config import ModelConfig
from pgolf.model.context import Context
from pgolf.model.linear import Linear
from pgolf.model.norm import rms_norm
from pgolf.model.rotary import inverse_frequencies, rotary_tables
from pgolf.model.wiring import run_begun, wire

if TYPE_CHECKING:
    from pgolf.model.visit import Visit


class TiedHead(nn.Module):
    """Softcapped logits from the normalised stream and the embedding matrix."""

    def __init__(self, softcap: float) -> None:
        super().__init__()
        self.softcap = softcap

    def forward(self, hidden: Tensor, embedding: Tensor, visit: "Visit | None" = None) -> Tensor:
        """hidden [B, T, d], embedding [V, d] to logits [B, T, V], float32: three roundings to bfloat16 behind the
        product would cost 0.0003 BPB where nothing fuses them away.
        """
        weight = embedding.to(hidden.dtype)
        if visit is not None:  # few logits, and their rounding is half of what two ways to compute a loss differ by
            hidden, weight = hidden.to(visit.exact), weight.to(visit.exact)
        logits = F.linear(hidden, weight)
        if visit is not None:
            logits = visit.adapt("head", logits, hidden)
        return self.softcap * torch.tanh(logits.float() / self.softcap)


class GPT(nn.Module):
    """The model, in evaluation mode until `begin_training`.

    `runs` is how often the recurrent segment runs, 1 to `loop_runs`; `looped` sets it to all or one (all for
    evaluation and calibration, delayed in training).
    """

    def __init__(self, config: ModelConfig, vocab_size: int, dtype: torch.dtype = torch.float32) -> None:
        """Weights are float32; activations run in `dtype`. Initialisation draws from torch's global generator."""
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.runs = config.loop_runs
        self.wirings = {runs: wire(config, runs) for runs in range(1, config.loop_runs + 1)}
        embedding = torch.randn(vocab_size, config.dim) * config.embed_std
        if config.init == "overtone":
            from pgolf.model.overtone import overtone

            embedding = overtone(embedding)
        self.tok_emb = nn.Embedding(vocab_size, config.dim, _weight=embedding)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        skips = self.wirings[config.loop_runs].skips
        self.skip_weights = nn.Parameter(torch.ones(skips, config.dim))
        self.skip_gates = nn.Parameter(torch.zeros(skips, config.dim)) if config.skips == "gated" else None
        self._add_lanes()
        self._add_embeddings(vocab_size)
        self.loop_pos = None
        if config.loop_pos != "none":
            from pgolf.model.loop_position import loop_positions

            self.loop_pos = nn.Parameter(loop_positions(config.repeats, config.dim, config.loop_pos))
        self.head = TiedHead(config.softcap)
        self.mtp_heads: nn.ModuleList | None = None
        self.further: Callable[[nn.ModuleList, Tensor, Tensor, ModelConfig], Tensor] | None = None
        self._cos = self._sin = self._scales = torch.empty(0)
        self.eval()

    def _add_lanes(self) -> None:
        self.lane_form = None
        self.routing: tuple[str, ...] = ()
        if self.config.lanes:
            from pgolf.model.lanes import lane_form

            self.lane_form = lane_form(self.config)
            values = self.lane_form.parameters(self.config)
            for name, value in values.items():
                self.register_parameter(name, nn.Parameter(value))
            self.routing = tuple(name for name, value in values.items() if value.ndim)

    def _add_embeddings(self, vocab_size: int) -> None:
        config = self.config
        self.bigram = self.trigram = self.smear = self.window_smear = self.ve_shared = None
        if config.smear == "window":
            from pgolf.model.smear import smear

            self.window_smear = smear
            self.smear_gate = Linear(config.gate_window, 1, zero=True)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        elif config.smear != "none":
            from pgolf.model.smear_vector import VectorSmear

            self.smear = VectorSmear(config.dim, config.smear_init, config.smear_mask)
        if config.bigram.rows or config.trigram.rows:
            from pgolf.model.hash_embedding import BIGRAM, TRIGRAM, HashEmbedding

            self.bigram = HashEmbedding(config.bigram, BIGRAM, config.dim) if config.bigram.rows else None
            self.trigram = HashEmbedding(config.trigram, TRIGRAM, config.dim) if config.trigram.rows else None
        if config.value_embed.last:
            from pgolf.model.value_embedding import ValueEmbedding

            self.ve_shared = ValueEmbedding(config, vocab_size)
            self.ve_layer_scales = nn.Parameter(torch.ones(config.value_embed.last))

    @property
    def layers(self) -> int:
        """Virtual layers of one run of the stack."""
        return sum(map(len, self.wirings[self.runs]))

    @property
    def looped(self) -> bool:
        """Whether recurrence is fully on."""
        return self.runs == self.config.loop_runs

    @looped.setter
    def looped(self, on: bool) -> None:
        self.runs = self.config.loop_runs if on else 1

    def begin_training(self) -> "GPT":
        """Switch on what only training has: dropout and the heads for further tokens."""
        if self.config.multi_token.heads:
            from pgolf.model.multi_token import build_heads, further_losses

            device = self.tok_emb.weight.device
            self.mtp_heads = build_heads(self.config, self.tok_emb.num_embeddings).to(device)
            self.further = further_losses
        return self.train()

    def end_training(self) -> "GPT":
        """The inverse of `begin_training`: the model as it ships."""
        self.mtp_heads = None
        return self.eval()

    def prepare(self, length: int) -> None:
        """Fill the rotary tables for rows of up to `length` tokens, and the scales (outside a compiled graph)."""
        device = self.tok_emb.weight.device
        if self._cos.size(0) < length or self._cos.device != device or self._cos.dtype != self.dtype:
            depth = torch.arange(1, self.config.layers + 1, device=device)
            self._scales = depth.rsqrt() if self.config.ln_scale else torch.ones_like(depth).float()
            cos, sin = rotary_tables(length, inverse_frequencies(self.config, device))
            self._cos, self._sin = cos.to(self.dtype), sin.to(self.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """ids [B, T] to the normalised embedding x0 [B, T, d], hashed n-grams and smear included."""
        x = F.embedding(ids, self.tok_emb.weight).to(self.dtype)
        for table in (self.bigram, self.trigram):
            if table is not None:
                x = x + table(ids, self.dtype)
        if self.window_smear is not None:
            x = self.window_smear(x, ids, self.smear_gate.weight, self.smear_lambda, self.config.smear_mask)
        if self.smear is not None and self.config.smear == "raw_vector":
            x = self.smear(x, ids)
        x = rms_norm(x)
        return self.smear(x, ids) if self.smear is not None and self.config.smear == "vector" else x

    def hidden(
        self, ids: Tensor, segments: Segments | None = None, visits: "Sequence[Visit] | None" = None, lead: int = 0
    ) -> Tensor:
        """ids [B, T] to the normalised final state [B, T, d]; `prepare` must have seen T.

        `visits`: what adapts each virtual layer, in the order in which they run. The first `lead` of the ids are the
        tokens before those that are run, for embeddings that look back; the visits remember what attention needs.
        """
        x = x0 = self.embed(ids)[:, lead:]
        start = visits[0].tokens if visits else 0
        tables = self._cos[start : start + x.size(1)], self._sin[start : start + x.size(1)]
        context = Context(x0, self._scales[0], tables, segments)
        values = self.layer_values(ids[:, lead:])
        for run in range(self.config.stack_runs):
            if self.loop_pos is not None and self.config.stack_runs > 1:
                x = x + self.loop_pos[run].to(x.dtype)
            mine = visits[run * self.layers : (run + 1) * self.layers] if visits else None
            x = self.u_net(x, self.contexts(x, context, values), mine)
        return self.norm(x)

    def layer_values(self, ids: Tensor) -> dict[int, Tensor]:
        """What is added to the values [B, T, Hkv D], by layer."""
        if self.ve_shared is None:
            return {}
        shared, scales = self.ve_shared(ids, self.dtype), self.ve_layer_scales.to(self.dtype)
        first = self.config.layers - len(scales)
        return {first + place: scale * shared for place, scale in enumerate(scales)}

    def contexts(self, x: Tensor, context: Context, values: dict[int, Tensor]) -> list[Context]:
        """The context of every physical layer, x [B, T, d] being the input of the first."""
        layers = [
            context._replace(scale=self._scales[layer], values=values.get(layer)) for layer in range(self.config.layers)
        ]
        if self.config.value_residual in ("learned", "fixed"):
            first = self.blocks[0].first_values(x, layers[0])  # type: ignore[operator]
            layers[1:] = [later._replace(first=first) for later in layers[1:]]
        elif self.config.value_residual == "gated":
            layers[0] = layers[0]._replace(first=context.x0)
        return layers

    def u_net(self, x: Tensor, contexts: list[Context], visits: "Sequence[Visit] | None" = None) -> Tensor:
        """All virtual layers, x [B, T, d] to [B, T, d]."""

        def seen(layer: int, place: int) -> Context:
            return contexts[layer] if visits is None else contexts[layer]._replace(visit=visits[place])

        wiring, lanes = self.wirings[self.runs], None
        stack: list[Tensor] = []
        for place, layer in enumerate(wiring.encoder):
            x = self.blocks[layer](self.mark(x, place), seen(layer, place))
            stack.append(x)
            if place == 0 and self.config.value_residual == "gated":
                contexts = [contexts[0], *(later._replace(first=x) for later in contexts[1:])]
        for position, layer in enumerate(wiring.decoder):
            block, join = self.blocks[layer], self.joint(position, stack)
            mine = seen(layer, len(wiring.encoder) + position)
            if block.in_lanes:
                assert self.lane_form is not None
                entering, lanes = lanes is None, self.lane_form.split(x) if lanes is None else lanes
                lanes = self.lane_form.skip(lanes, entering, join)
                rows = tuple(getattr(self, name)[layer] for name in self.routing)
                lanes = block.forward_lanes(lanes, rows, mine)  # type: ignore[operator]
            else:
                x = self.mark(join(x), len(wiring.encoder) + position)
                x = block(x, mine)
        return x if lanes is None else self.lane_form.end(self, lanes)  # type: ignore[union-attr]

    def norm(self, x: Tensor) -> Tensor:
        """The final state of what the stack ends with."""
        return rms_norm(x)

    def mark(self, x: Tensor, place: int) -> Tensor:
        """Add the loop position where the virtual layer at `place` begins a run of the segment."""
        if self.loop_pos is None or (run := run_begun(self.config, self.runs, place)) is None:
            return x
        return x + self.loop_pos[run].to(x.dtype)

    def joint(self, position: int, stack: list[Tensor]) -> Callable[[Tensor], Tensor]:
        """What joins the next skip to a stream at a decoder position; the identity where there is none."""
        if not stack or position >= len(self.skip_weights):
            return lambda x: x
        skip, gate = stack.pop(), None if self.skip_gates is None else self.skip_gates[position]
        return lambda x: self.skip(x, skip, self.skip_weights[position], gate)

    def skip(self, x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        """g * x + (1 - g) * (w * skip) with g = sigmoid(gate), or x + w * skip; x, skip [B, T, d], weight, gate [d]."""
        if gate is None:
            return torch.addcmul(x, weight.to(x.dtype), skip)
        return torch.lerp(weight.to(x.dtype) * skip, x, torch.sigmoid(gate).to(x.dtype))

    def forward(self, ids: Tensor, segments: Segments | None = None) -> Tensor:
        """ids [B, T] to softcapped logits [B, T, V]."""
        return self.head(self.hidden(ids, segments), self.tok_emb.weight)  # type: ignore[no-any-return]

    def losses(self, ids: Tensor, targets: Tensor, segments: Segments | None = None) -> Tensor:
        """Negative log-likelihood of each target, nats, float32, shape of ids [B, T]; while training, with what the
        heads for further tokens add to it.
        """
        hidden = self.hidden(ids, segments)
        losses = self.surprise(hidden, targets)
        if self.mtp_heads is not None and self.further is not None:
            losses = losses + self.further(self.mtp_heads, hidden, targets, self.config)
        return losses

    def surprise(self, hidden: Tensor, targets: Tensor, visit: "Visit | None" = None) -> Tensor:
        """Losses [B, T] from the final state [B, T, d]."""
        logits = self.head(hidden, self.tok_emb.weight, visit)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def matrix_inputs(config: ModelConfig) -> dict[str, str]:
    """Each weight matrix and the module whose input it multiplies; what reads the same input shares one."""
    with torch.device("meta"):
        model = GPT(config, 1)
    shared = {"c_k": "c_q", "c_v": "c_v" if config.value_residual == "gated" else "c_q", "gate": "fc"}
    sources = {"tok_emb.weight": "head"}  # as output matrix: the embedding's own input has no covariance
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, Linear):
            parent, _, last = name.rpartition(".")
            sources[f"{name}.weight"] = f"{parent}.{shared.get(last, last)}"
    return sources
