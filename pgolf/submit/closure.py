"""Which source files a program needs, read from its text: nothing is imported, so no GPU and no package is needed.

Three users: the packer (the bytes that count against the cap are exactly the runtime closure), the test of
`dvc.yaml` (a stage depends on the files it imports, not on whole packages) and the test that keeps
Typer, rich, DVC and ruamel out of the submission. Imports under `if TYPE_CHECKING:` never run and do not count;
imports inside functions do, because they run sooner or later.
"""

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class ClosureError(AssertionError):
    """The program cannot be followed or packed as it stands; the message names the module and the import."""


@dataclass(frozen=True, slots=True)
class Import:
    """One import as written: `import module`, or `from module import names`."""

    module: str
    """Empty where it is computed when the program runs: `import_module(name)`."""
    names: tuple[str, ...]
    line: int
    lazy: bool
    """Inside a function: runs when that function is called, not when the module is loaded."""


class ThirdParty(NamedTuple):
    """Top-level names of external packages, standard library excluded."""

    eager: set[str]
    """Imported while some module of the closure is loaded."""
    lazy: set[str]
    """Imported only inside functions."""


def import_closure(
    entries: Sequence[str], root: Path, *, stop: Collection[str] = (), packages: Collection[str] | None = None
) -> dict[str, Path]:
    """Module name -> file of every first-party module that `entries` reach, sorted by name.

    First-party is what lies under `root`, or of that only the top-level `packages`: an installed project lies beside
    all others. The `__init__.py` of every package on the way is part of the result, empty
    or not, because importing a module runs it. Modules named in `stop`, and what lies inside them, are neither
    reported nor followed. Raises ClosureError for a first-party module without a file and for a computed import.
    """
    found: dict[str, Path] = {}
    waiting = [(name, "the entries") for name in entries]
    while waiting:
        name, importer = waiting.pop()
        if name in found or within(name, stop):
            continue
        path = find_module(name, root)
        if path is None:
            raise ClosureError(f"{importer} imports `{name}`, but {root.name} has no such module")
        found[name] = path
        waiting += [(parent, name) for parent in _parents(name)]
        for imported in imports(name, path):
            if not imported.module:
                raise ClosureError(f"`{name}` line {imported.line} imports a computed name; write the import out")
            targets = first_party(imported, root)
            waiting += [(t, name) for t in targets if packages is None or t.partition(".")[0] in packages]
    return dict(sorted(found.items()))


def third_party(files: Mapping[str, Path]) -> ThirdParty:
    """The external packages that the modules of a closure import."""
    own = {name.partition(".")[0] for name in files}
    seen: dict[bool, set[str]] = {False: set(), True: set()}
    for name, path in files.items():
        for imported in imports(name, path):
            top = imported.module.partition(".")[0]
            if top not in own and top not in sys.stdlib_module_names:
                seen[imported.lazy].add(top)
    return ThirdParty(seen[False], seen[True] - seen[False])


def first_party(imported: Import, root: Path) -> list[str]:
    """The modules under `root` that one import loads: none for an external package."""
    if not imported.module or find_module(imported.module.partition(".")[0], root) is None:
        return []
    names = (f"{imported.module}.{name}" for name in imported.names)
    return [imported.module, *(name for name in names if find_module(name, root) is not None)]


def find_module(name: str, root: Path) -> Path | None:
    """The source file of a module under `root`, or None."""
    stem = root.joinpath(*name.split("."))
    candidates = (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


def within(name: str, modules: Collection[str]) -> bool:
    """Whether `name` is one of `modules` or lies inside one of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def imports(name: str, path: Path) -> list[Import]:
    """Every import that the module `name` can run, in the order of its text."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return list(_walk(ast.parse(path.read_bytes(), str(path)), package, lazy=False))


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`, whose body never runs."""
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _walk(node: ast.AST, package: str, *, lazy: bool) -> Iterator[Import]:
    """Imports below one node; `package` anchors the relative ones."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, (), node.lineno, lazy)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
        yield Import(base, tuple(alias.name for alias in node.names), node.lineno, lazy)
    elif isinstance(node, ast.Call) and _callee(node.func) in ("import_module", "__import__"):
        match node.args:
            case [ast.Constant(value=str(module)), *_]:
                yield Import(module, (), node.lineno, lazy)
            case _:
                yield Import("", (), node.lineno, lazy)
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    children: Iterator[ast.AST] | list[ast.stmt] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and is_type_checking(node):
        children = node.orelse
    for child in children:
        yield from _walk(child, package, lazy=inside)


def _callee(func: ast.expr) -> str:
    return func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""


def _parents(name: str) -> list[str]:
    """`a.b.c` -> `["a", "a.b"]`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
