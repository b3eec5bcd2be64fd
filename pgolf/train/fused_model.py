"""Which blocks are run as `pgolf.train.fused_block` writes them out, and how they are called."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgolf.kernels import epilogue
from pgolf.kernels.attention_rows import Rows, rows_of
from pgolf.kernels.gated_output import WINDOW
from pgolf.kernels.heads import Shape
from pgolf.kernels.heads_accumulated import fits as fits_sums
from pgolf.model.attention import Segments
from pgolf.model.attention_gradient import gives_sums
from pgolf.model.blocks import Attention, Block
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.train.fast import fits as fits_mlp
from pgolf.train.folded import matrix
from pgolf.train.fused_block import LanesBlock, SequentialBlock
from pgolf.train.fused_call import Call, Parameters
from pgolf.train.fused_stack import Branches, Ended, Joined, Within, ends, stack_functions
from pgolf.train.skips import Branch
from pgolf.train.visits import Opened, opened

if TYPE_CHECKING:
    from pgolf.model.lanes import Lanes


class Chain:
    """What the blocks of a forward pass share: x0 as the last one returned it, so that its gradient passes through all
    of them and is added up on the way; the streams that are read again; the rows of its documents in attention's
    gradient; what each block opened.
    """

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.last = torch.empty(0)
        self.branches = Branches()
        self._rows: Rows | None = None
        self.opened: dict[Fused, Opened] = {}
        """By this forward pass, after `take`."""

    def rows(self, segments: Segments, tokens: int) -> Rows:
        """Of this forward pass, after `take`."""
        if self._rows is None:
            self._rows = rows_of(segments.cu_seqlens, tokens)
        return self._rows

    def take(self, x0: Tensor) -> Tensor:
        """What the next block reads for the embedding x0 of this forward pass, [N, d]."""
        if self.first is not x0:
            self.first, self.last = x0, x0.flatten(0, -2)
            self._rows, self.opened = None, {}
            self.branches.begin(self.last.requires_grad)
            if self.last.requires_grad:
                self.last.register_hook(self._forget)  # type: ignore[no-untyped-call]
        return self.last

    def _forget(self, gradient: Tensor) -> None:
        """Where the backward pass has come to x0: let its graph go. A later pass would go on with what it kept for the
        gradient of the embedding, and with its stream, which no CUDA graph may wait for.
        """
        self.first, self.last, self._rows, self.opened = None, torch.empty(0), None, {}
        self.branches.begin(False)


class Fused:
    """The functions that stand in for those of a block."""

    def __init__(self, block: Block, chain: Chain, eight: bool, ends: bool) -> None:
        attn, mlp = block.attn, block.mlp
        self.block, self.chain, self.ends = block, chain, ends
        self.heads, self.eight = len(attn.q_gain), eight
        self.parameters = Parameters(
            attn.c_q.weight, attn.c_k.weight, attn.c_v.weight, attn.proj.weight, matrix(mlp.fc), matrix(mlp.proj),
            attn.q_gain, attn.attn_gate_w if attn.gate is not None else None, block.attn_scale, block.mlp_scale,
            block.resid_mix,
        )  # fmt: skip
        self.ones = torch.ones(block.resid_mix.size(1), device=attn.q_gain.device)

    def forward(self, given: Tensor | Joined, context: Context) -> Tensor:
        """`Block.forward`."""
        x0 = self.chain.take(context.x0)
        x, within = _begun(given)
        call, token = self._call(x, context)
        join, *skip = within or (None, None, None)
        first = x is context.x0 and join is None
        branch = Branch(self.ones) if call.epilogues and join is None else None
        call = call._replace(join=join, branch=branch)
        out, self.chain.last, alias = SequentialBlock.apply(  # type: ignore[no-untyped-call]
            call, None if first else x.flatten(0, -2), x0, token, *skip
        )
        if join is None and not first:
            self.chain.branches.add(x, alias, branch)
        result: Tensor = out.view_as(x)
        return result

    def forward_lanes(self, streams: "Lanes", rows: tuple[Tensor, ...], context: Context) -> "Lanes | Ended":
        """`Block.forward_lanes`, of the last layer with what follows; rows are P [2, 2] and rho [2]."""
        x0 = self.chain.take(context.x0)
        x, within = _begun(streams.attention)
        call, token = self._call(x, context)
        join, *skip = within or (None, None, None)
        lanes = x.flatten(0, -2), None if streams.mlp is x else self.chain.branches.of(streams.mlp)
        first, second, self.chain.last = LanesBlock.apply(  # type: ignore[no-untyped-call]
            call._replace(join=join, ends=self.ends), *lanes, x0, *rows, token, *skip
        )
        if self.ends:
            return Ended(first.view_as(x))
        return streams._replace(attention=first.view_as(x), mlp=second.view_as(x))

    forward.written_out = forward_lanes.written_out = True  # type: ignore[attr-defined]

    def _call(self, x: Tensor, context: Context) -> tuple[Call, Tensor]:
        """After `Chain.take`; with the token of the block's parameters."""
        attn = self.block.attn
        dim = attn.head_dim
        shape = Shape(self.heads, attn.c_k.weight.size(0) // dim, dim, x.size(-2))
        weights, sums, token = self._opened(x.dtype)
        rows, half = None, context.tables[0].size(-1)
        if context.segments is not None and fits_sums(half, dim) and gives_sums(x.device, x.dtype, dim):
            rows = self.chain.rows(context.segments, x.size(-2))
        call = Call(
            weights, self.parameters, sums, context.scale, self.ones[0], context.tables, context.segments, shape,
            self.block.mlp.slope, attn.exclusive_output, attn.gate_scale if attn.gate is not None else 0.0,
            _epilogues(x), rows,
        )  # fmt: skip
        return call, token

    def _opened(self, dtype: torch.dtype) -> Opened:
        if self not in self.chain.opened:
            self.chain.opened[self] = opened(self.parameters, dtype, self.eight)
        return self.chain.opened[self]


def _begun(given: Tensor | Joined) -> tuple[Tensor, Within | None]:
    """What a block reads, lane 0 in lanes, and the skip that it is to make of that."""
    if not isinstance(given, Joined):
        return given, None
    within = given.within() if _epilogues(given.x) else None
    return (given.made(), None) if within is None else (given.x, within)


def _epilogues(x: Tensor) -> bool:
    return (x.dtype == torch.bfloat16 or x.device.type == "cpu") and epilogue.present()


def fused_functions(model: GPT, eight: bool = False) -> Iterator[tuple[nn.Module, str, Any]]:
    """(block, name, function) for every block that is of the form, and whose values nothing is added to; if there is
    one, (model, name, ...) for what lies around them.
    """
    chain, written, last = Chain(), 0, ends(model)
    for block in model.blocks[: model.config.layers - model.config.value_embed.last]:
        if isinstance(block, Block) and fits(block):
            fused = Fused(block, chain, eight, last and block is model.blocks[-1])
            yield block, "forward", fused.forward
            yield block, "forward_lanes", fused.forward_lanes
            written += 1
    if written:
        yield from stack_functions(model, chain.branches, written == len(model.blocks))


def fits(block: Block) -> bool:
    """Whether a block is PR 1493's or 1855's: norms before the halves, one after the other or in lanes, plain values,
    a narrow gate or none, LeakyReLU^2.
    """
    attn = block.attn
    sizes = len(attn.q_gain), len(attn.c_k.weight) // attn.head_dim, attn.head_dim
    return (
        all(size & (size - 1) == 0 for size in sizes)
        and attn.sharpness == 1
        and not (attn.mix_values or attn.differ or block.parallel or block.peri or block.hybrid)
        and not (block.mix_input or block.mlp_gate or block.token_gate)
        and _fits_gate(attn)
        and _fits_lanes(block)
        and fits_mlp(block.mlp)
    )


def _fits_gate(attn: Attention) -> bool:
    if attn.gate is None:
        return True
    from pgolf.model.gates import narrow  # a submission without gates, or lanes, ships none

    return attn.gate is narrow and attn.attn_gate_w.size(1) <= WINDOW <= attn.width


def _fits_lanes(block: Block) -> bool:
    if block.lane_step is None:
        return True
    from pgolf.model.lanes import step

    return block.lane_step is step
