"""What lies around the blocks, written out: skips, and the end of the stack; and how a stream that two read gets its
gradient without a pass that adds them up.

Whoever reads a stream x first returns it too, as an alias, and a later reader reads that: what the later one sends
back then reaches the first one's backward pass beside the gradient of its result, and is added where that is written
anyway. A skip reads what the next block returned of the encoder's output, the MLP's lane what the skip returned.
With epilogues skips with a gate are within the block that follows (`pgolf.train.skips`), in lanes too. Where lanes are
split with no pass of a skip between, the block reads the stream for both.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pgolf.kernels.final_norm import final_backward, final_forward
from pgolf.kernels.skip import skip_backward, skip_forward
from pgolf.model.gpt import GPT
from pgolf.train.skips import Branch, Join, Joins, opened

if TYPE_CHECKING:
    from pgolf.model.lanes import Lanes


class Branches:
    """The aliases of a forward pass, in the order of their streams: skips read the last one first. And its skips, and
    the rows of their parameters.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor, Branch | None]] = []
        self.rows: dict[nn.Parameter, tuple[Tensor, ...]] = {}
        self.joins: tuple[Joins, Tensor] | None = None
        self.wanted = False

    def begin(self, wanted: bool) -> None:
        """A forward pass, or the end of a backward pass: nothing of another one is kept."""
        self.kept, self.rows, self.joins, self.wanted = [], {}, None, wanted

    def add(self, x: Tensor, alias: Tensor, branch: Branch | None = None) -> None:
        """What the first reader of x returned of it; `branch` is that of a block with epilogues."""
        if self.wanted and x.requires_grad:
            self.kept.append((x, alias, branch))

    def of(self, x: Tensor) -> Tensor:
        """What the next reader of x reads, [N, d]; lets go of what came after it, which no skip will ask for."""
        alias, _ = self.taken(x)
        return x.flatten(0, -2) if alias is None else alias

    def taken(self, x: Tensor) -> tuple[Tensor | None, Branch | None]:
        """The same, nothing where nobody returned it, and the branch of who did."""
        for place, (stream, alias, branch) in enumerate(self.kept):
            if stream is x:
                del self.kept[place:]
                return alias, branch
        return None, None

    def row(self, table: nn.Parameter, row: Tensor) -> Tensor:
        """That row of a table [n, d], cut together with all others: their gradients make the table's at once, where
        each by itself would fill one with zeros and add it.
        """
        if not self.wanted:
            return row
        if table not in self.rows:
            self.rows[table] = table.unbind()
        return self.rows[table][_place(table, row)]


def _place(table: Tensor, row: Tensor) -> int:
    return (row.storage_offset() - table.storage_offset()) // table.stride(0)


class Skip(torch.autograd.Function):
    """x, s [N, d], s None for x itself, weight, gate [d] to the joined stream and x."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, x: Tensor, s: Tensor | None, weight: Tensor, gate: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, s = x.contiguous(), None if s is None else s.contiguous()
        ctx.save_for_backward(x, s, weight, gate)
        ctx.set_materialize_grads(False)
        return skip_forward(x, s, weight, gate), x.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        d, branch = (None if each is None else each.contiguous() for each in upstream)
        if d is None:
            return branch, None, None, None
        x, s, weight, gate = ctx.saved_tensors
        return skip_backward(d, x, s, weight, gate, branch)


class FinalNorm(torch.autograd.Function):
    """The last stream [N, d], or both lanes, to the final state."""

    @staticmethod
    def forward(ctx: Any, *streams: Tensor) -> Tensor:  # noqa: D102
        y, inverse = final_forward(*(stream.contiguous() for stream in streams))
        ctx.lanes = len(streams) == 2
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:  # noqa: D102
        y, inverse = ctx.saved_tensors
        dx = final_backward(upstream[0].contiguous(), y, inverse, ctx.lanes)
        return (dx, dx) if ctx.lanes else (dx,)


class Stack:
    """The functions that stand in for those of a model; its blocks share `branches`. `within`: all of them are written
    out, and take what a skip makes as a `Joined`.
    """

    def __init__(self, model: GPT, branches: Branches, within: bool) -> None:
        self.weights, self.gates, self.branches = model.skip_weights, model.skip_gates, branches
        self.within = within and model.loop_pos is None and model.skip_gates is not None

    def skip(self, x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor | None) -> "Tensor | Joined":
        """`GPT.skip`, or what the block that follows makes of it."""
        joined = Joined(self, x, skip, weight, gate)
        return joined if self.within and self.branches.wanted else self.made(*joined[1:])

    def made(self, x: Tensor, skip: Tensor, weight: Tensor, gate: Tensor | None) -> Tensor:
        """By passes of its own."""
        s, weight = None if skip is x else self.branches.of(skip), self.branches.row(self.weights, weight)
        if gate is not None and self.gates is not None:
            gate = self.branches.row(self.gates, gate)
        out, alias = Skip.apply(x.flatten(0, -2), s, weight, gate)  # type: ignore[no-untyped-call]
        self.branches.add(x, alias)
        return out.view_as(x)  # type: ignore[no-any-return]

    skip.written_out = True  # type: ignore[attr-defined]


class Within(NamedTuple):
    """A skip as a block takes it."""

    join: Join
    s: Tensor | None
    token: Tensor


class Joined(NamedTuple):
    """In the place of the stream that a skip makes: how it would be called."""

    stack: Stack
    x: Tensor
    skip: Tensor
    weight: Tensor
    gate: Tensor | None

    def made(self) -> Tensor:
        """The stream."""
        return self.stack.made(*self[1:])

    def within(self) -> Within | None:
        """Of a block with epilogues; None where s was not read by such a block, which would multiply by the ratio."""
        branches, same = self.stack.branches, self.skip is self.x
        s, branch = (None, None) if same else branches.taken(self.skip)
        if not same and branch is None:
            return None
        if branches.joins is None:
            assert self.stack.gates is not None
            branches.joins = opened(self.stack.weights, self.stack.gates)
        joins, token = branches.joins
        join = Join(joins, _place(self.stack.weights, self.weight), same)
        if branch is not None:
            branch.ratio = join.ratio()
        return Within(join, s, token)


class Ended(NamedTuple):
    """In the place of the last layer's lanes: what the norm would make of them (`pgolf.kernels.lane_end`)."""

    y: Tensor


def ends(model: GPT) -> bool:
    """Whether the norm of the mean of lanes is all that follows the last layer."""
    if model.lane_form is None or model.config.stack_runs > 1:
        return False
    from pgolf.model.lanes import mean

    return model.lane_form.end is mean


def final_norm(x: "Tensor | Lanes | Ended") -> Tensor:
    """`GPT.norm`, also of lanes that nothing has joined."""
    if isinstance(x, Ended):
        return x.y
    streams = (x,) if isinstance(x, Tensor) else x
    y: Tensor = FinalNorm.apply(*(stream.flatten(0, -2) for stream in streams))  # type: ignore[no-untyped-call]
    return y.view_as(streams[0])


def stack_functions(model: GPT, branches: Branches, within: bool) -> Iterator[tuple[GPT, str, Any]]:
    """(model, name, what is to stand there)."""
    yield model, "skip", Stack(model, branches, within).skip
    yield model, "norm", final_norm
    if ends(model):
        assert model.lane_form is not None
        yield model, "lane_form", model.lane_form._replace(end=_apart)


def _apart(model: nn.Module, lanes: "Lanes | Ended") -> Any:
    """The lanes, where `final_norm` takes them; their mean where the model's own norm stands there for a while."""
    from pgolf.model.lanes import mean

    return lanes if isinstance(lanes, Ended) or "norm" in vars(model) else mean(model, lanes)
