"""One module does what many did: traps of scope, order and naming, each run both ways; what cannot be followed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pgolf.sections import load_sections
from pgolf.submit.bundle import bundle
from pgolf.submit.closure import ClosureError
from pgolf.submit.pack_code import ENTRY, optional_modules, program_sources, program_text
from pgolf.submit.reach import undefined
from pgolf.submit.strip import strip

ROOT = Path(__file__).parents[2]
HEAD = {"p/__init__.py": "", "p/q/__init__.py": ""}

PROGRAMS: dict[str, dict[str, str]] = {
    "two modules use one name": {
        "p/a.py": "X = 1\ndef get():\n    return X\n",
        "p/b.py": "X = 2\ndef get():\n    return X\n",
        "p/main.py": "from p.a import get\nfrom p.b import get as other\ndef main():\n    print(get(), other())\n",
    },
    "a local hides what another module imported": {
        "p/a.py": "def size():\n    return 3\nvalue = 7\n",
        "p/main.py": (
            "from p.a import size as measure, value as constant\n"
            "def main(size=4):\n    value = 5\n    inner = lambda value: value + constant\n"
            "    print(measure(), size, value, constant, inner(1), [value for value in (1, constant)])\n"
        ),
    },
    "a module's names through the module": {
        "p/a.py": "TABLE = {1: 2}\ndef look(key):\n    return TABLE[key]\n",
        "p/main.py": "from p import a\nfrom . import a as b\ndef main(look=0):\n    print(a.TABLE, look, b.look(1))\n",
    },
    "a name like a builtin's": {
        "p/a.py": "def sum(x):\n    return 'mine'\ndef max():\n    return 'other'\n",
        "p/main.py": "from p.a import sum as total\ndef main():\n    print(total([1]), sum([1]), max(1, 2))\n",
    },
    "passed on": {
        "p/a.py": "from json import dumps as text\nX = 1\n",
        "p/b.py": "from p.a import X as Y, text\n",
        "p/main.py": "from p.b import Y, text\ndef main():\n    print(text([Y]))\n",
    },
    "imported where it is used, or assigned": {
        "p/a.py": "value = 41\nother = 1\n",
        "p/main.py": (
            "def pick(flag):\n    if flag:\n        from p.a import value, other as more\n"
            "    else:\n        value = more = 0\n    return value + more\n"
            "def main():\n    from p import a\n    print(pick(True), pick(False), a.other)\n"
        ),
    },
    "rebound by a function": {
        "p/a.py": "_state = 1\ndef step():\n    global _state\n    _state += 1\n    return _state\n",
        "p/b.py": "_state = 9\n",
        "p/main.py": "from p.a import step\nfrom p.b import _state\ndef main():\n    print(step(), step(), _state)\n",
    },
    "members of classes": {
        "p/a.py": "def split():\n    return 's'\nsize = 3\n",
        "p/main.py": (
            "from p.a import split as cut, size as width\nfrom typing import NamedTuple\nsize = 8\n"
            "def cut_again():\n    return cut()\n"
            "class A(NamedTuple):\n    cut: object = cut\n    size: int = size\n    more: int = size + 1\n"
            "class B:\n    width = width\n    def cut(self):\n        return cut() + str(self.width)\n"
            "def main():\n    print(A().cut(), A().size, A().more, B().cut(), cut_again())\n"
        ),
    },
    "loaded in order, also under conditions": {
        "p/a.py": "from p.c import X\nprint('a')\nif X:\n    import math as m\nelse:\n    m = None\n",
        "p/c.py": "print('c')\nX = 1\nfor X in range(5):\n    pass\nwith open('/dev/null') as f:\n    pass\n",
        "p/main.py": "from p.a import m\nprint('main')\ndef main():\n    print(m.floor(2.5))\n",
    },
    "errors, generators, patterns": {
        "p/a.py": "class OddError(ValueError):\n    pass\nname = 'n'\n",
        "p/main.py": (
            "from p.a import OddError, name as label\nfrom functools import cache\n"
            "@cache\ndef f(x):\n    assert x\n    if x % 2:\n        raise OddError(f'{x} is odd')\n    return x\n"
            "def unused():\n    return undefined_name_in_dead_code\n"
            "def none():\n    raise ValueError\n    yield 1\n"
            "def kind(x):\n    match x:\n        case {'a': name, **rest}:\n            return name, rest\n"
            "        case [label, *more]:\n            return label, more\n"
            "def main():\n    try:\n        f(3)\n    except OddError as name:\n        print(type(name).__name__)\n"
            "    try:\n        list(none())\n    except ValueError:\n"
            "        print(kind({'a': 1, 'b': 2}), kind([1, 2]))\n"
            "    total = [(y := n) for n in (1, 2)]\n    print(label, total, y, f(2))\n"
        ),
    },
    "arguments by name and by place": {
        "p/main.py": (
            "from functools import partial\n"
            "def place(first, second):\n    return first - second\n"
            "def some(first, second, third=3):\n    return first, second, third\n"
            "def later(first, second):\n    return [first, second]\n"
            "class A:\n    def __init__(self, size):\n        self.size = size\n"
            "    def grow(self, by, times=1):\n        return self.size + by * times\n"
            "    def look(self, what):\n        return what\n"
            "def main():\n    kinds = {'second': 2, 'what': 'seen'}\n"
            "    print(place(3, 1), some(1, third=4, second=2), partial(later, second=5)(4))\n"
            "    print(A(size=4).grow(2, times=3), getattr(A(1), 'look')(what=kinds.pop('what')), later(1, **kinds),\n"
            "          (lambda first: first)(1))\n"
        ),
    },
    "arguments of a class": {
        "p/main.py": (
            "class A:\n    def __init__(self, first, second):\n        self.both = first - second\n"
            "class B:\n    def __init__(self, first, second=2):\n        self.both = first - second\n"
            "class C:\n    def __init__(self, first, second=2):\n        self.both = first - second\n"
            "class D(C):\n    pass\n"
            "class E:\n    def __init__(self, other):\n        self.both = other\n"
            "    def next(self):\n        return type(self)(other=3)\n"
            "def main():\n    make = B\n"
            "    print(A(3, 1).both, make(second=1, first=4).both, D(first=9).both, E(1).next().both)\n"
        ),
    },
    "private methods": {
        "p/main.py": (
            "class A:\n    def __init__(self, a):\n        self.a = a\n"
            "    def _alone(self):\n        return self.a + self._named() + self._shared()\n"
            "    def _named(self):\n        return 1\n    def _shared(self):\n        return 10\n"
            "    def _asked(self):\n        return 100\n"
            "    def total(self, other):\n        return self._alone() + other._asked()\n"
            "class B(dict):\n    def _shared(self):\n        return 7\n"
            "def main():\n    print(A(1000).total(A(0)), getattr(A(0), '_named')(), B()._shared())\n"
        ),
    },
    "checks of a frozen class": {
        "p/main.py": (
            "from dataclasses import dataclass, replace\nfrom typing import Literal\n"
            "@dataclass(frozen=True)\nclass A:\n    kind: Literal['a', 'b']\n    size: int | None = None\n"
            "    def __post_init__(self):\n        if self.size == 0:\n            raise ValueError('size')\n"
            "@dataclass\nclass B:\n    x: int\n    def __post_init__(self):\n        self.y = self.x + 1\n"
            "def main():\n    print(replace(A('a'), size=2) == A('a', 2), A('b').size, B(1).y, sorted(vars(B(1))))\n"
        ),
    },
}


def run(folder: Path, module: str) -> str:
    code = f"from {module} import main; main()"
    return subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"], cwd=folder,
                          capture_output=True, text=True, check=True).stdout  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_module_does_what_many_did(name: str, tmp_path: Path) -> None:
    sources = HEAD | PROGRAMS[name]
    for path, text in sources.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    whole = program_text(sources, "p.main")
    assert "from p" not in whole
    (tmp_path / "whole.py").write_text(whole)
    assert run(tmp_path, "whole") == run(tmp_path, "p.main") != ""


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "module as object": ({"p/a.py": "", "p/main.py": "from p import a\ndef main():\n    print(a)\n"}, "as an object"),
    "rebound after an import": (
        {
            "p/a.py": "x = 1\ndef f():\n    global x\n    x = 2\n",
            "p/main.py": "from p.a import x\ndef main():\n    print(x)\n",
        },
        "`x` of `p.a` is rebound",
    ),
    "dotted import": ({"p/a.py": "", "p/main.py": "import p.a\ndef main():\n    pass\n"}, "write `from"),
    "names as text": ({"p/main.py": "def main():\n    print(globals())\n"}, "line 2 reads names as text"),
    "everything": ({"p/main.py": "from math import *\ndef main():\n    pass\n"}, "imports everything"),
    "asynchronous": ({"p/main.py": "async def main():\n    pass\n"}, "asynchronous"),
    "two meanings": (
        {"p/main.py": "from math import pi\ndef main():\n    print(pi)\npi = 3\n"},
        "imports and assigns `pi`",
    ),
    "one name of two packages": (
        {
            "p/a.py": "import os.path\ny = os\n",
            "p/main.py": "import sys as os\nfrom p.a import y\ndef main():\n    print(y, os)\n",
        },
        "add `as`",
    ),
    "nothing there": (
        {"p/a.py": "", "p/main.py": "from p.a import x\ndef main():\n    print(x)\n"},
        "imports `p.a.x`, which is not",
    ),
    "where it lies": ({"p/main.py": "def main():\n    print(__file__)\n"}, "would define __file__"),
    "nothing defines it": ({"p/main.py": "def main():\n    print(y)\n"}, "would define y"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    sources, message = REFUSED[name]
    with pytest.raises(ClosureError, match=message):
        bundle(HEAD | sources, "p.main")


def test_what_is_left_out_is_missed_where_it_is_used() -> None:
    sources = HEAD | {
        "p/a.py": "def f():\n    return 1\ndef g():\n    return f() + len(h())\ndef h():\n    return 'text of h'\n",
        "p/main.py": (
            "def main(x=0):\n    if x == 1:\n        from p.a import g\n    if x == 2:\n        from p.b import y\n"
            "        return y\n    if x == 1:\n        return g()\n    from p.a import f\n    return f()\n"
        ),
    }
    whole = bundle(sources, "p.main", ["p.a.g", "p.b"])
    assert "text of h" not in whole
    found: dict[str, Any] = {}
    exec(whole, found)
    assert found["main"]() == 1
    for x in (1, 2):
        with pytest.raises(ImportError):
            found["main"](x)


def test_what_nothing_reaches_is_dropped_and_what_acts_stays() -> None:
    text = (
        "import json\nimport math\n"
        "def a():\n    return b()\ndef b():\n    return a()\n"  # a circle that nothing enters
        "def register(f):\n    return f\n@register\ndef kept():\n    pass\n"
        "GONE = {1: 'x'}\nMADE = print('made')\nNAMED = 'word'\n"
        "class Some:\n    def used(self):\n        return 1\n    def gone(self):\n        return helper()\n"
        "def helper():\n    return math.pi\n"
        "def main():\n    return getattr(Some(), 'used'), json\n"
    )
    found = bundle({"p.py": text}, "p")
    for name in ("json", "register", "kept", "MADE", "used"):
        assert name in found, name
    for name in ("math", "def a", "def b", "GONE", "NAMED", "gone", "helper"):
        assert name not in found, name


def test_only_the_entry_and_readers_of_files_keep_their_messages() -> None:
    text = "def f():\n    raise ValueError(f'a {1} b')\n"
    assert "ValueError(" in ast_text(text, speaks=True)
    assert "raise ValueError\n" in ast_text(text, speaks=False) + "\n"
    assert "KeyError(key)" in ast_text("def f(key):\n    raise KeyError(key)\n", speaks=False)


def ast_text(source: str, *, speaks: bool) -> str:
    import ast

    return ast.unparse(ast.fix_missing_locations(strip(source, "m.py", speaks=speaks)))


def test_names_that_nothing_defines_are_seen() -> None:
    assert undefined("import a\ndef f(x):\n    return [a for _ in x if y] + len(z)\nclass C:\n    b = c\n") == {
        "y", "z", "c"
    }  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"model": {"parallel": "lanes", "attn_gate": "sparse"}}])
def test_the_closure_of_the_runtime_bundles(change: dict[str, dict[str, str]]) -> None:
    params = load_sections(ROOT / "params.yaml").resolved()
    changed = {section: values | change.get(section, {}) for section, values in params.items()}
    exclude = optional_modules(changed)
    text = bundle(program_sources(ENTRY, ROOT, exclude), ENTRY, exclude)
    assert ("class Lanes" in text) is bool(change)
    assert "import pgolf" not in text
    assert "from pgolf" not in text
