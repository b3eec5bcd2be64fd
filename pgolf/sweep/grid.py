"""A declared sweep: which parameters vary, as a factorial of named levels or as named rows.

    base:                                  # what all rows share, over params.yaml
      preset: record-1855                  # as `pgolf preset use` would write them
      overlays: [bench]
      set: {train.steps: 250, train.seconds: null}
    factors:                               # every combination of levels is a cell
      smear: {on: {}, off: {model.smear: none}}
      gate: {on: {}, off: {model.attn_gate: none}}
    seeds: [42, 43]                        # every cell with each; without it, with that of the parameters

or, instead of `factors`, named rows; the one called `base` is what the others are compared with:

    cells:
      base: {}
      no smear: {model.smear: none}
    seeds: [42]
    base_seeds: [42, 43, 44]               # more seeds for `base`: their spread is the noise of a row
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from pgolf.config import suggest
from pgolf.errors import InputError
from pgolf.params import read_params
from pgolf.presets import FOLDER, with_presets
from pgolf.sections import Sections, check_sections

BASE = "base"
"""The row that ablations are compared with."""
SEED = "train.seed"
Values = Mapping[str, Any]
"""Dotted parameter key -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row of a sweep."""

    name: str
    """Of an explicit row, or its levels: `smear=on gate=off`."""
    values: Values
    """What it sets over the base."""
    seed: int | None = None
    """Of what the grid's `seed_key` names; None: that of the parameters."""
    levels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Factor -> level; empty for an explicit row."""

    @property
    def label(self) -> str:
        """The name, with the seed where there is one."""
        return self.name if self.seed is None else f"{self.name} @{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A checked grid file: every key is a parameter, every name is unique."""

    name: str
    """Stem of the file."""
    presets: tuple[str, ...] = ()
    """Preset and overlays of the base, in order."""
    shared: Values
    """What the base sets over them."""
    factors: Mapping[str, Mapping[str, Values]]
    """Factor -> level -> values; empty where rows are explicit."""
    rows: Mapping[str, Values]
    """Explicit rows; empty for a factorial."""
    seeds: tuple[int | None, ...] = (None,)
    base_seeds: tuple[int | None, ...] = (None,)
    seed_key: str = SEED
    """The parameter that takes the seeds."""

    def cells(self) -> list[Cell]:
        """All rows in the order of the file, the seeds of a row next to each other."""
        if self.rows:
            plain = [Cell(name=name, values=values) for name, values in self.rows.items()]
        else:
            levels = [[(factor, level) for level in self.factors[factor]] for factor in self.factors]
            plain = [self._combination(dict(chosen)) for chosen in itertools.product(*levels)]
        return [
            dataclasses.replace(cell, seed=seed)
            for cell in plain
            for seed in (self.base_seeds if cell.name == BASE and self.rows else self.seeds)
        ]

    def sections(self, cell: Cell, params: Path, folder: Path = FOLDER) -> Sections:
        """Every parameter of a row, checked: a params file, the presets, the shared values, the cell, its seed.

        InputError names the row.
        """
        return self._row(cell, with_presets(read_params(params), *self.presets, folder=folder), params)

    def resolved(self, params: Path, folder: Path = FOLDER) -> list[tuple[Cell, Sections]]:
        """`sections` of all rows, from one reading of the files."""
        base = with_presets(read_params(params), *self.presets, folder=folder)
        return [(cell, self._row(cell, copy.deepcopy(base), params)) for cell in self.cells()]

    def values(self, cell: Cell) -> Values:
        """All that a row sets over the presets: the shared values, its own, its seed."""
        seed = {} if cell.seed is None else {self.seed_key: cell.seed}
        return {**self.shared, **cell.values, **seed}

    def _row(self, cell: Cell, document: dict[str, Any], params: Path) -> Sections:
        """The row's sections; its values are set in `document`."""
        try:
            return check_sections(set_values(document, self.values(cell)), params)
        except InputError as error:
            raise InputError(f"row `{cell.label}` of grid `{self.name}`: {error}") from None

    def _combination(self, levels: Mapping[str, str]) -> Cell:
        values = {k: v for factor, level in levels.items() for k, v in self.factors[factor][level].items()}
        return Cell(name=" ".join(f"{f}={level}" for f, level in levels.items()), values=values, levels=levels)


def set_values(document: dict[str, Any], values: Values) -> dict[str, Any]:
    """`document` with these values set in it, each in the mapping that its dotted key names."""
    for key, value in values.items():
        *path, last = key.split(".")
        place = document
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return document


def read_grid(path: Path, seed_key: str = SEED) -> Grid:
    """Read and check a grid file whose seeds are values of `seed_key`; one InputError for the first mistake."""
    if not path.is_file():
        raise InputError(f"grid {path} does not exist: shipped grids lie in grids/")
    document = read_params(path)
    _known(document, ("base", "factors", "cells", "seeds", "base_seeds"), str(path))
    base = _mapping(document.get("base", {}), f"{path}: `base`")
    _known(base, ("preset", "overlays", "set"), f"{path}: `base`")
    if ("factors" in document) == ("cells" in document):
        raise InputError(f"{path} must have either `factors` or `cells`")
    factors = _factors(document.get("factors", {}), path, seed_key)
    rows = {
        str(name): _values(values, f"{path}: cell `{name}`", seed_key)
        for name, values in _mapping(document.get("cells", {}), f"{path}: `cells`").items()
    }
    if not factors and not rows:
        raise InputError(f"{path} has no rows: name some under `cells` or `factors`")
    if "base_seeds" in document and BASE not in rows:
        raise InputError(f"{path} has `base_seeds` but no row `{BASE}` under `cells`")
    seeds = _seeds(document.get("seeds"), f"{path}: `seeds`")
    return Grid(
        name=path.stem,
        presets=_presets(base, path),
        shared=_values(base.get("set", {}), f"{path}: `base.set`", seed_key),
        factors=factors,
        rows=rows,
        seeds=seeds,
        base_seeds=_seeds(document["base_seeds"], f"{path}: `base_seeds`") if "base_seeds" in document else seeds,
        seed_key=seed_key,
    )


def _factors(document: Any, path: Path, seed_key: str) -> dict[str, dict[str, Values]]:
    factors: dict[str, dict[str, Values]] = {}
    owner: dict[str, str] = {}
    for name, levels in _mapping(document, f"{path}: `factors`").items():
        where = f"{path}: factor `{name}`"
        factors[str(name)] = {
            str(level): _values(values, f"{where}, level `{level}`", seed_key)
            for level, values in _mapping(levels, where).items()
        }
        if len(factors[str(name)]) < 2:
            raise InputError(f"{where} has fewer than two levels")
        for key in {key for values in factors[str(name)].values() for key in values}:
            if key in owner:
                raise InputError(f"{where} sets `{key}`, which factor `{owner[key]}` sets as well")
            owner[key] = str(name)
    return factors


def _presets(base: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    overlays = base.get("overlays", [])
    names = [*([base["preset"]] if base.get("preset") is not None else []), *_sequence(overlays, f"{path}: `overlays`")]
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}: `base` names the preset {name!r}; it must be text")
    return tuple(names)


def _seeds(value: Any, where: str) -> tuple[int | None, ...]:
    if value is None:
        return (None,)
    seeds = _sequence(value, where)
    if not seeds or any(type(seed) is not int for seed in seeds) or len(set(seeds)) != len(seeds):
        raise InputError(f"{where} is {value!r}; it must be a list of different whole numbers")
    return tuple(seeds)


def _values(document: Any, where: str, seed_key: str) -> Values:
    values = _mapping(document, where)
    for key in values:
        check_key(str(key), where)
    if seed_key in values:
        raise InputError(f"{where} sets `{seed_key}`: list seeds under `seeds`")
    return values


def check_key(key: str, where: str) -> None:
    """InputError unless `key` is the dotted name of one parameter."""
    cls: Any = Sections
    for part in key.split("."):
        if not dataclasses.is_dataclass(cls):
            raise InputError(f"{where}: `{key}` is not a parameter; it ends before `.{part}`")
        hints = get_type_hints(cls)
        if part not in hints:
            raise InputError(f"{where}: `{key}` is not a parameter{suggest(part, hints)}")
        cls = hints[part]
    if dataclasses.is_dataclass(cls):
        raise InputError(
            f"{where}: `{key}` is a group of parameters; name one (`{key}.{next(iter(get_type_hints(cls)))}`)"
        )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping, got {value!r}")
    return value


def _sequence(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list, got {value!r}")
    return value


def _known(document: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    names = tuple(names)
    for key in document:
        if key not in names:
            raise InputError(f"{where} has the unknown key `{key}`{suggest(str(key), names)}")
