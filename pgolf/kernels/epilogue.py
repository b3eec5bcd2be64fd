"""A matrix product with a function of each element at its end, on Hopper by CuTe DSL through quack-kernels (Dao 2025).

    acc = a b^T,  a [N, K], b [n, K];   out = function(acc, ...)["D"];   sums[name] [N] = sum over n of x y

The function is written once, with operators and `pgolf.kernels.elements`. Its arguments after `acc`: `c` is an addend
of the form of `out`, others are tensors [N, n], vectors [N] or [n], or numbers. On a CPU it is called with tensors, so
that the tests of a block cover every formula; on a GPU with the elements of an accumulator, before they leave the
registers.
"""

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

FAST = (("fp8_slow_accum", False),)
"""Sums of products of 8 bits stay in the matrix unit, which keeps 14 bits of them, where operands have 4; added up
outside they take twice the registers, more than a tile of 256 columns leaves.
"""
PROCESSES, PATIENCE = 8, 120.0
"""Most processes of a machine that compile, and seconds to wait for them."""


class Tile(NamedTuple):
    """Of the result, what one program computes at a time."""

    rows: int = 128
    columns: int = 256
    cluster: tuple[int, int] = (2, 1)
    """Programs along rows and columns that share what they load."""
    pingpong: bool = False
    """Two tiles in turn: one's epilogue runs under the other's product."""


@functools.cache
def present() -> bool:
    """Whether this machine has such products."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        return False
    try:
        import quack.epilogue  # noqa: F401
    except ModuleNotFoundError:
        return False
    except Exception as error:  # installed for another CUDA or another compiler: every library of it raises its own
        warnings.warn(f"quack-kernels is installed and does not load ({error}): products go without", stacklevel=2)
        return False
    return True


_left_out: set[str] | None = None
"""Within `compiled_aside`: names of the kernels that are being compiled."""


@contextlib.contextmanager
def compiled_aside() -> Iterator[None]:
    """Within it a product whose kernel is not compiled yet is left out, what it would write stays as it is, and its
    kernel is compiled by one of several processes meanwhile; at the end they lie in the package's cache. What these
    processes cannot do is done by this one, when it is called.
    """
    global _left_out
    try:
        from quack.cache import async_compile

        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        pool = async_compile.activate(max(1, min(PROCESSES, len(os.sched_getaffinity(0))) // ranks))
    except Exception as error:  # an older package, no further processes here: training needs neither
        warnings.warn(f"kernels are compiled one after another, which takes longer ({error!r})", stacklevel=2)
        yield
        return
    _left_out = set()
    try:
        yield
        end = time.monotonic() + PATIENCE
        while any(pool.poll(name)[0] == "pending" for name in _left_out) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        _left_out = None
        async_compile.deactivate()


def launch(gemm: Callable[..., None], *operands: Any, **options: Any) -> None:
    """Call a product's kernel, or see `compiled_aside`."""
    if _left_out is None:
        gemm(*operands, **options)
        return
    from quack.cache.async_compile import CompilePending, suppress_pool

    try:
        gemm(*operands, **options)
    except CompilePending as pending:
        _left_out.add(pending.sha)
    except Exception:  # a process that died, say; what is wrong with the kernel itself shows once more
        with suppress_pool():
            gemm(*operands, **options)


class Product:
    """The product. Further results of the form of `out` are in `also`; of `sums`, over columns, and `column_sums`, over
    rows, the function returns the two factors of what is added up. `of_rows` and `of_columns` are vectors.
    """

    def __init__(
        self, function: Callable[..., dict[str, Any]], sums: tuple[str, ...] = (), column_sums: tuple[str, ...] = (),
        also: tuple[str, ...] = (), of_rows: tuple[str, ...] = (), of_columns: tuple[str, ...] = (),
        tile: Tile | None = None,
    ) -> None:  # fmt: skip
        self.function, self.sums, self.column_sums, self.also = function, sums, column_sums, also
        self.of_rows, self.of_columns = of_rows, of_columns
        self.tile = tile or Tile()

    def __call__(
        self, a: Tensor, b: Tensor, out: Tensor, c: Tensor | None = None, **operands: Tensor | float
    ) -> dict[str, Tensor]:
        """Writes `out` [N, n], which may be `c`, and the tensors of `also`; returns sums in parts, float32: [N, parts]
        over columns, [parts, n] over rows, the latter as `columns` [sums, parts, n] too, in the order of `column_sums`.
        """
        if a.device.type == "cpu":
            return self._by_tensors(a, b, out, c, operands)
        parts = -(-out.size(1) // self.tile.columns), -(-len(out) // self.tile.rows)
        found = {name: out.new_empty(len(out), parts[0], dtype=torch.float32) for name in self.sums}
        columns = out.new_empty(len(self.column_sums), parts[1], out.size(1), dtype=torch.float32)
        into = found | dict(zip(self.column_sums, columns, strict=True))
        launch(
            self._kernel.gemm, _plain(a), b, out, None if c is None else _plain(c),
            epi_args=self._given(operands) | into, tile_M=self.tile.rows, tile_N=self.tile.columns,
            cluster_M=self.tile.cluster[0], cluster_N=self.tile.cluster[1], pingpong=self.tile.pingpong,
            post_init_attrs=FAST if a.dtype.itemsize == 1 else (),
        )  # fmt: skip
        return into | {"columns": columns}

    def _given(self, operands: dict[str, Any]) -> dict[str, Any]:
        """As the kernel takes them: vectors [1, N] and [1, n], and no tensor of a graph."""
        plain = {name: _plain(each) if isinstance(each, Tensor) else each for name, each in operands.items()}
        return plain | {name: plain[name][None] for name in (*self.of_rows, *self.of_columns)}

    @functools.cached_property
    def _kernel(self) -> Any:
        from quack.epilogue import gemm_epilogue
        from quack.epilogue.ops import ColVecLoad, ColVecReduce, RowVecLoad, RowVecReduce

        loads = {name: ColVecLoad(name) for name in self.of_rows}
        loads |= {name: RowVecLoad(name) for name in self.of_columns}
        reduces = {name: ColVecReduce(name, scaled=True) for name in self.sums}
        reduces |= {name: RowVecReduce(name, scaled=True) for name in self.column_sums}
        return gemm_epilogue(outputs=self.also, ops=loads, reduces=reduces)(self.function)

    def _by_tensors(
        self, a: Tensor, b: Tensor, out: Tensor, c: Tensor | None, operands: dict[str, Any]
    ) -> dict[str, Tensor]:
        wide = torch.float32 if out.dtype.itemsize == 1 else torch.promote_types(out.dtype, torch.float32)
        given = {name: value for name, value in operands.items() if name not in self.also}
        for name, value in given.items():
            if isinstance(value, Tensor):
                given[name] = value.to(wide)[:, None] if name in self.of_rows else value.to(wide)
        result = self.function(a.to(wide) @ b.to(wide).T, **given, **({} if c is None else {"c": c.to(wide)}))
        for name, target in {"D": out, **{name: operands[name] for name in self.also}}.items():
            target.copy_(result[name])
        found = {name: (result[name][0] * result[name][1]).sum(1, keepdim=True) for name in self.sums}
        down = {name: (result[name][0] * result[name][1]).sum(0, keepdim=True) for name in self.column_sums}
        return found | down | {"columns": torch.stack([*down.values()]) if down else out.new_empty(0)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor
