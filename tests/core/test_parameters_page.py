"""docs/parameters.md is what the dataclasses say, and has every key that a run resolves."""

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pgolf.cli import app
from pgolf.errors import InputError
from pgolf.reference import _words, excerpt, page, parameters
from pgolf.sections import load_sections

ROOT = Path(__file__).parents[2]


def leaves(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_the_committed_page_is_current() -> None:
    assert (ROOT / "docs/parameters.md").read_text("utf-8") == page(), "run `pgolf parameters > docs/parameters.md`"


def test_every_resolved_key_has_a_row_with_a_meaning() -> None:
    rows = [line.split(" | ", 3) for line in page().splitlines() if line.startswith("| `")]
    written = [row[0].removeprefix("| ").strip("`") for row in rows]
    assert written == list(leaves(load_sections(ROOT / "params.yaml").resolved()))
    assert [row[0] for row in rows if len(row[3].rstrip(" |")) < 10] == []


@dataclasses.dataclass(frozen=True)
class Inner:
    """Nested."""

    rate: float = 0.5
    """A rate."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """An example."""

    needed: int
    """Must be
    given."""
    names: tuple[str, ...] = ("a", "b")
    """Some | names."""
    inner: Inner = Inner(rate=0.25)
    """Replaced default."""
    switch: bool | None = None
    """Or not."""


def test_defaults_types_and_docstrings_are_read_from_the_source() -> None:
    assert [tuple(row) for row in parameters(Outer, "out")] == [
        ("out.needed", "int", "", "Must be given."),
        ("out.names", "tuple[str, ...]", '["a","b"]', "Some | names."),
        ("out.inner.rate", "float", "0.25", "A rate."),
        ("out.switch", "bool | None", "null", "Or not."),
    ]


@pytest.mark.parametrize(("annotation", "words"), [
    ("Literal['float32', 'int8']", "one of float32, int8"),
    ("Literal['str', 'boolean'] | None", "one of str, boolean or null"),
    ("tuple[float, ...]", "list of number"),
    ("tuple[Literal['int', 'x'], ...]", "list of one of int, x"),
    ("int | None", "whole number or null"),
    ("bool", "true or false"),
    ("str", "text"),
])  # fmt: skip
def test_types_become_words_and_values_stay(annotation: str, words: str) -> None:
    assert _words(annotation) == words


def test_a_word_finds_its_keys_and_a_wrong_one_is_suggested_away() -> None:
    found = excerpt("muon.lr").splitlines()
    assert len(found) == 1
    assert found[0].startswith("train.muon.lr (number, default 0.022): Learning rate")
    with pytest.raises(InputError, match=r"did you mean `train\.muon\.lr`"):
        excerpt("train.muon.lrr")


def test_the_command_prints_page_and_excerpt() -> None:
    assert CliRunner().invoke(app, ["parameters"]).stdout == page()
    assert CliRunner().invoke(app, ["parameters", "muon.lr"]).stdout == excerpt("muon.lr")
