"""The strict loader: what it accepts, what it refuses and how it says so."""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pgolf.config import build, canonical, digest, suggest, to_dict
from pgolf.errors import InputError
from pgolf.sections import Sections


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    rate: float = 0.5
    name: str = "a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    count: int
    flag: bool = False
    share: float = 1.0
    mode: Literal["fast", "slow"] = "fast"
    level: Literal[1, 2] = 1
    limit: int | None = None
    inner: Inner = Inner()
    maybe: Inner | None = None
    widths: tuple[int, ...] = ()
    parts: tuple[Inner, ...] = field(default_factory=tuple)

    def __post_init__(self):
        if self.count < 0:
            raise InputError(f"`count` is {self.count}; it must be at least 0")


def make(**values):
    return build(Outer, {"count": 1} | values, "top")


def test_defaults_and_nested_values():
    assert make() == Outer(count=1)
    built = make(inner={"rate": 2}, maybe={"name": "b"}, widths=[1, 2], parts=[{"rate": 0.1}, {}], limit=3)
    assert built == Outer(
        count=1,
        inner=Inner(rate=2.0),
        maybe=Inner(name="b"),
        widths=(1, 2),
        parts=(Inner(rate=0.1), Inner()),
        limit=3,
    )
    assert type(built.inner.rate) is float


@pytest.mark.parametrize(("values", "message"), [
    ({"shar": 1.0}, r"`top\.shar` is not a parameter; did you mean `share`\?"),
    ({"inner": {"rat": 1.0}}, r"`top\.inner\.rat` is not a parameter; did you mean `rate`\?"),
    ({"zzzzzzzz": 1}, r"`top\.zzzzzzzz` is not a parameter \(known: count, flag, "),
    ({1: 2}, r"`top\.1` is not a parameter"),
    ({"count": True}, r"`top\.count` is True \(bool\); it must be a whole number"),
    ({"count": "6"}, r"`top\.count` is '6' \(str\); it must be a whole number"),
    ({"count": 1.5}, r"`top\.count` is 1\.5 \(float\); it must be a whole number"),
    ({"count": 2.0}, r"`top\.count` is 2\.0 \(float\); it must be a whole number"),
    ({"count": None}, r"`top\.count` is None \(NoneType\); it must be a whole number"),
    ({"count": [1]}, r"`top\.count` is \[1\] \(list\)"),
    ({"flag": 1}, r"`top\.flag` is 1 \(int\); it must be true or false"),
    ({"flag": "on"}, r"`top\.flag` is 'on' \(str\); it must be true or false"),
    ({"share": "1e-3"}, r"`top\.share` is '1e-3' \(str\); it must be a number"),
    ({"share": True}, r"`top\.share` is True \(bool\); it must be a number"),
    ({"share": float("nan")}, r"`top\.share` is nan; it must be a finite number"),
    ({"share": float("inf")}, r"`top\.share` is inf; it must be a finite number"),
    ({"share": 10**400}, r"`top\.share` .* must be a finite number"),
    ({"mode": "fst"}, r"`top\.mode` is 'fst'; it must be one of 'fast', 'slow'"),
    ({"mode": ["fast"]}, r"`top\.mode` is \['fast'\]; it must be one of"),
    ({"level": True}, r"`top\.level` is True; it must be one of 1, 2"),
    ({"level": 1.0}, r"`top\.level` is 1\.0; it must be one of 1, 2"),
    ({"limit": "3"}, r"`top\.limit` is '3' \(str\); it must be a whole number"),
    ({"limit": True}, r"`top\.limit` is True \(bool\)"),
    ({"inner": 3}, r"`top\.inner` must be a mapping of keys to values, got 3"),
    ({"inner": None}, r"`top\.inner` must be a mapping of keys to values, got None"),
    ({"inner": {"name": 3}}, r"`top\.inner\.name` is 3 \(int\); it must be text"),
    ({"widths": 3}, r"`top\.widths` is 3; it must be a list"),
    ({"widths": "12"}, r"`top\.widths` is '12'; it must be a list"),
    ({"widths": [1, "2"]}, r"`top\.widths\[1\]` is '2' \(str\); it must be a whole number"),
    ({"parts": [{}, {"rate": "x"}]}, r"`top\.parts\[1\]\.rate` is 'x' \(str\); it must be a number"),
    ({"count": -1}, r"in `top`: `count` is -1; it must be at least 0"),
])  # fmt: skip
def test_mistakes_are_refused_by_key_and_value(values, message):
    with pytest.raises(InputError, match=message):
        make(**values) if all(isinstance(key, str) for key in values) else build(Outer, {"count": 1} | values, "top")


def test_missing_key_is_named():
    with pytest.raises(InputError, match=r"`top\.count` is missing: add it to the `top` section"):
        build(Outer, {"flag": True}, "top")


@pytest.mark.parametrize("values", [None, [], "count", 3])
def test_section_must_be_a_mapping(values):
    with pytest.raises(InputError, match=r"`top` must be a mapping"):
        build(Outer, values, "top")


def test_suggestions():
    assert suggest("evalute", ["train", "evaluate"]) == "; did you mean `evaluate`?"
    assert suggest("xyz", ["train", "evaluate"]) == " (known: evaluate, train)"


def values_of(hint):
    """Any value of an annotation, mostly small, so that checks between fields often pass."""
    if dataclasses.is_dataclass(hint):
        return instances_of(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arg is type(None) else values_of(arg) for arg in args))
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=3).map(tuple)
    return {
        int: st.one_of(st.sampled_from([1, 2, 4, 8, 1024, 4096]), st.integers(-1, 300)),
        float: st.one_of(st.floats(1e-3, 1), st.floats(allow_nan=False, allow_infinity=False)),
        bool: st.booleans(),
        str: st.text(max_size=5),
    }[hint]


@st.composite
def instances_of(draw, cls):
    """The defaults with up to four values changed, where the class accepts them."""
    hints = typing.get_type_hints(cls)
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    changed = draw(st.lists(st.sampled_from(sorted(hints)), max_size=4, unique=True))
    values = {name: draw(values_of(hints[name])) for name in sorted({*required, *changed})}
    try:
        return cls(**values)
    except InputError:
        assume(False)


SECTIONS = {**typing.get_type_hints(Sections), "outer": Outer}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_survives_its_dictionary(name):
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(instances_of(SECTIONS[name]))
    def survives(config):
        values = to_dict(config)
        assert json.loads(canonical(values)) == values
        assert build(SECTIONS[name], values, name) == config
        assert set(values) == {f.name for f in dataclasses.fields(config)}

    survives()


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_are_frozen_and_take_keywords_only(name):
    cls = SECTIONS[name]
    assert all(f.kw_only for f in dataclasses.fields(cls))
    assert cls.__dataclass_params__.frozen
    assert "__slots__" in vars(cls)


def test_tuples_become_lists_and_come_back():
    config = Outer(count=2, widths=(3, 4), parts=(Inner(rate=0.25),))
    assert to_dict(config)["widths"] == [3, 4]
    assert to_dict(config)["parts"] == [{"rate": 0.25, "name": "a"}]
    assert build(Outer, to_dict(config), "top") == config


def test_canonical_json_is_sorted_compact_ascii_and_exact():
    value = {"b": [1, 2.5, None, True], "a": {"z": "ü", "y": 0.1 + 0.2}}
    text = '{"a":{"y":0.30000000000000004,"z":"\\u00fc"},"b":[1,2.5,null,true]}'
    assert canonical(value) == text
    assert canonical(dict(reversed(value.items()))) == text
    assert digest(value) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_refuses_what_json_lacks(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical({"a": value})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.integers() | st.floats(allow_nan=False, allow_infinity=False)))
def test_equal_content_has_an_equal_digest_and_different_content_another(value):
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert digest(value | {"extra-key": 1}) != digest(value)
