"""Which model codes which group of tensors, and from which other groups it may predict.

Groups are known by their names, the roles of a block's matrices (`attn.c_k`, `mlp.fc`, ...); any other group of int8
matrices and float16 vectors is coded without partners. Every function here runs at both ends: an encoder passes what is
in `tensors` to the coder, a decoder writes what comes out of it into `tensors`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np

from pgolf.codec.backends import CorruptStreamError
from pgolf.codec.embedding import PARENTS, code_embedding, find_parents, innovations
from pgolf.codec.layout import Array, Entry
from pgolf.codec.rans import Coder, Uniform, flat
from pgolf.codec.series import Series
from pgolf.codec.walk import (
    ENERGY_UNIT,
    TOLERANCE_UNIT,
    Partners,
    Side,
    code_columns,
    code_rows,
    expected_rows,
    measure,
)

ORDER = ("scales", "small", "attn.c_k", "attn.c_v", "attn.c_q", "attn.proj", "mlp.fc", "mlp.proj", "tok_emb")
"""Order of coding; other groups come after `small`."""
GROWING, HALVING = (1, 1, 2, 4, 8), (32, 16, 8, 4, 2, 1, 1)
"""Block sizes where later blocks learn from earlier ones, and where they share what is left."""
COLUMN_WEIGHT = {"attn.c_k": 12.0, "attn.c_v": 8.0, "attn.c_q": 150.0, "mlp.fc": 300.0}
LEAST_VECTOR, MOST_ROWS = 32, 64
LEAST_ROWS, MOST_COLUMNS = 64, 2048
"""Of an embedding that is coded by its covariance."""

Groups = Mapping[str, Sequence[Entry]]
Tensors = dict[str, Array]


def coding_order(groups: Groups) -> list[str]:
    """Group names in the order in which they are coded."""
    rank = {name: index if index < 2 else index + 1 for index, name in enumerate(ORDER)}
    return sorted(groups, key=lambda name: rank.get(name, 2))


def codable(entries: Sequence[Entry]) -> bool:
    """Whether there is a model for every tensor of the group."""
    return all(entry.dtype == "float16" or (entry.dtype == "int8" and len(entry.shape) == 2) for entry in entries)


def symbols(entries: Sequence[Entry]) -> int:
    """Number of elements."""
    return sum(entry.nbytes // entry.itemsize for entry in entries)


class Models:
    """Codes groups one by one; `encoding` says whether `tensors` hold what is to be coded, `trellis` whether its codes
    may obey one.
    """

    def __init__(
        self, coder: Coder, groups: Groups, tensors: Tensors, heads: int, *, encoding: bool, trellis: bool = False
    ) -> None:
        self.coder, self.groups, self.tensors, self.heads, self.encoding = coder, groups, tensors, heads, encoding
        self.trellis = trellis

    def code(self, group: str) -> None:
        """Code all tensors of a group; groups that come before it in `coding_order` must be known."""
        series = Series(self.coder)
        for (dtype, _), run in groupby(self.groups[group], key=lambda entry: (entry.dtype, entry.shape)):
            entries = list(run)
            if not symbols(entries):
                continue
            if dtype == "float16":
                for entry in entries:
                    self._vectors(series, entry)
            else:
                codes = self._stack(entries)
                self._matrices(group, entries, codes)
                for entry, code in zip(entries, codes, strict=True):
                    self.tensors[entry.key][...] = code

    def _vectors(self, series: Series, entry: Entry) -> None:
        bits = self.tensors[entry.key].reshape(-1).view(np.uint16)
        width = entry.shape[-1] if entry.shape else 1
        by_row = width >= LEAST_VECTOR and len(bits) // width <= MOST_ROWS
        for index, row in enumerate(bits.reshape(-1, width) if by_row else [bits]):
            series.code(f"{entry.key}.{chr(97 + index)}" if len(bits) > width else entry.key, row)

    def _stack(self, entries: Sequence[Entry]) -> Array:
        return np.stack([self.tensors[entry.key] for entry in entries])

    def _partner(self, group: str, codes: Array, axis: int) -> Array | None:
        """The matrices of another role, if they fit layer by layer and in the length of `codes`' lines."""
        entries = self.groups.get(group, ())
        shape = {entry.shape for entry in entries}
        if len(entries) != len(codes) or len(shape) != 1 or any(entry.dtype != "int8" for entry in entries):
            return None
        (rows_columns,) = shape
        fits = len(rows_columns) == 2 and rows_columns[1] == codes.shape[axis] and 0 not in rows_columns
        return self._stack(entries) if fits else None

    def _matrices(self, group: str, entries: Sequence[Entry], codes: Array) -> None:
        side = self._side(codes, self._expected(entries))
        _, rows, columns = codes.shape
        if group == "tok_emb" and len(codes) == 1 and rows >= LEAST_ROWS and columns <= MOST_COLUMNS:
            self._embedding(entries[0], codes[0], side)
        elif side.states and group not in ("mlp.proj", "attn.proj"):
            code_columns(self.coder, codes, side, cut(np.arange(columns), HALVING), None, 100.0, 2000.0)
        elif group == "mlp.proj":
            up = self._partner("mlp.fc", codes, 1)
            neurons = None if up is None or up.shape[1] != columns else _taker(up)
            code_columns(self.coder, codes, side, cut(np.arange(columns), HALVING), neurons, 100.0, 2000.0)
        elif group == "attn.proj":
            v = self._partner("attn.c_v", codes, 1)
            blocks, partners = self._heads(v, codes, columns, _columns)
            blocks = blocks[:-1] + cut(blocks[-1], (4, 2, 1, 1))
            code_columns(self.coder, codes, side, blocks, partners, 50.0, 300.0)
        elif group == "attn.c_q":
            k = self._partner("attn.c_k", codes, 2)
            blocks, partners = self._heads(k, codes, rows, _rows)
            code_rows(self.coder, codes, side, blocks, partners, COLUMN_WEIGHT[group])
        else:
            code_rows(self.coder, codes, side, cut(np.arange(rows), GROWING), None, COLUMN_WEIGHT.get(group, 32.0))

    def _heads(
        self, shared: Array | None, codes: Array, lines: int, take: Callable[[Array, Array], Array]
    ) -> tuple[list[Array], Partners | None]:
        """Blocks of lines and their partners for heads that share keys or values in groups (GQA).

        The first heads of all groups form the first block, the second ones the next; a line's partners are the same
        dimension of the shared head and, after the first block, of the head before.
        """
        size = lines // self.heads if self.heads and lines % self.heads == 0 else 0
        if shared is None or not size or shared.shape[1] % size or lines % shared.shape[1]:
            return cut(np.arange(lines), GROWING), None
        per_group = lines // shared.shape[1]
        number = np.arange(lines)
        head = number // size
        blocks = [number[head % per_group == index] for index in range(per_group)]

        def partners(block: Array) -> list[Array]:
            found = [_rows(shared, block // (size * per_group) * size + block % size)]
            if block[0] // size % per_group:
                found.append(take(codes, block - size))
            return found

        return blocks, partners

    def _embedding(self, entry: Entry, codes: Array, side: Side) -> None:
        scale = self.tensors.get(f"{entry.key.removesuffix('.q')}.scale")
        order = np.arange(len(codes))
        if scale is not None and scale.dtype == np.float16 and scale.shape == (len(codes),):
            order = np.argsort(-scale.view(np.int16).astype(np.int64), kind="stable")
        if side.rows is not None:
            side = replace(side, rows=side.rows[:, order])
        ranked, parents = codes[order], np.full((len(codes), PARENTS), -1)
        if self.encoding:
            parents = find_parents(innovations(ranked, side))
        code_embedding(self.coder, ranked, side, parents)
        codes[order] = ranked

    def _expected(self, entries: Sequence[Entry]) -> Array | None:
        """Relative energies of the rows as their scales tell them, where every matrix has its scales."""
        scales = [self.tensors.get(f"{entry.key.removesuffix('.q')}.scale") for entry in entries]
        known = [s for s, e in zip(scales, entries, strict=True) if s is not None and s.shape == e.shape[:1]]
        fits = len(known) == len(entries) and all(scale.dtype == np.float16 for scale in known)
        return expected_rows(known) if fits else None

    def _side(self, codes: Array, expected: Array | None) -> Side:
        """Send the side information: least and most code + 128, tolerance, energy of each layer.

        The most code before the least one announces a trellis; a tolerance of 0 that the scales tell the energies of
        rows, and the real one.
        """
        side = measure(codes if self.encoding else codes[:, :1])  # what a decoder measures is not sent
        if self.encoding and expected is not None:
            side = min(side, measure(codes, expected), key=lambda found: found.tolerance)
        states = 0
        if self.trellis and side.least < side.most:
            from pgolf.codec.trellis import recognised

            states = recognised(codes)
        head = np.array([side.least + 128, side.most + 128][:: -1 if states else 1])
        least, most = (self.coder.code(Uniform(256), head, *flat(2)) - 128).tolist()
        if least > most:
            least, most, states = most, least, self._states(states)
        tolerance = round(side.tolerance * TOLERANCE_UNIT)
        energy = np.rint(side.energy * ENERGY_UNIT).astype(np.intp)
        sent = self._tolerance(0 if side.rows is not None else tolerance)
        rows = None
        if not sent:
            if expected is None:
                raise CorruptStreamError("the rows' energies are to follow from scales that are not there")
            sent, rows = self._tolerance(tolerance), expected
        energy = self.coder.code(Uniform(1 << 24), energy, *flat(len(energy)))
        return Side(
            least=least,
            most=most,
            energy=np.maximum(energy, 1) / ENERGY_UNIT,
            tolerance=max(sent, 1) / TOLERANCE_UNIT,
            rows=rows,
            states=states,
        )

    def _states(self, states: int) -> int:
        """Send the number of states of a trellis."""
        from pgolf.codec.trellis import STATES

        known = np.array([STATES.index(states) if self.encoding else 0])
        return STATES[int(self.coder.code(Uniform(len(STATES)), known, *flat(1))[0])]

    def _tolerance(self, value: int) -> int:
        return int(self.coder.code(Uniform(1 << 12), np.array([value]), *flat(1))[0])


def cut(lines: Array, parts: Sequence[int]) -> list[Array]:
    """Consecutive blocks in these proportions; empty ones are left out."""
    ends = np.cumsum([0, *parts]) * len(lines) // sum(parts)
    return [lines[a:b] for a, b in pairwise(ends) if b > a]


def _taker(codes: Array) -> Partners:
    return lambda lines: [_rows(codes, lines)]


def _rows(codes: Array, rows: Array) -> Array:
    """float64 [columns, layers, n]."""
    return np.ascontiguousarray(codes[:, rows].transpose(2, 0, 1)).astype(np.float64)


def _columns(codes: Array, columns: Array) -> Array:
    """float64 [rows, layers, n]."""
    return np.ascontiguousarray(codes[:, :, columns].transpose(1, 0, 2)).astype(np.float64)
