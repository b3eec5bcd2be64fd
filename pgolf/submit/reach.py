"""What a program never runs: statements after the end of their block, and definitions that nothing mentions."""

import ast
import builtins
import re
import symtable
from collections.abc import Iterator

PURE = frozenset({"cache", "contextmanager", "dataclass"})
"""Decorators that do nothing beyond the definition, so that an unused one may be dropped."""

PURE_CALLS = frozenset({"TypeVar", "dict", "frozenset", "tuple"})


def cut_unreachable(tree: ast.Module) -> None:
    """Drop what follows a statement that ends its block; a `yield` stays, because it makes a generator."""
    for node in ast.walk(tree):
        for block in (getattr(node, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(block, list):
                continue
            ends = (index for index, each in enumerate(block) if isinstance(each, ast.Raise | ast.Return))
            end = next(ends, len(block)) + 1
            tail = [inner for each in block[end:] for inner in ast.walk(each)]
            if not any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in tail):
                del block[end:]


def reached(body: list[ast.stmt], main: str) -> list[ast.stmt]:
    """The statements that do something, `main`, and the definitions that these reach, by name or as text."""
    defines: dict[str, list[int]] = {}
    live: list[int] = []
    for index, statement in enumerate(body):
        names = _definition(statement)
        for name in names:
            defines.setdefault(name, []).append(index)
        if not names or main in names:
            live.append(index)
    kept = set(live)
    while live:
        for word in _words(body[live.pop()]):
            fresh = [index for index in defines.get(word, []) if index not in kept]
            kept.update(fresh)
            live += fresh
    found = [statement for index, statement in enumerate(body) if index in kept]
    return reached(found, main) if _drop_methods(found) else found


def _drop_methods(body: list[ast.stmt]) -> int:
    """Take methods out that nothing mentions, of classes that inherit nothing; returns how many."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    mentioned = {node.attr for node in nodes if isinstance(node, ast.Attribute)}.union(*map(_words, body))
    count = 0
    for node in nodes:
        if isinstance(node, ast.ClassDef) and not node.bases:
            kept = [each for each in node.body if not isinstance(each, ast.FunctionDef)
                    or each.name in mentioned or each.name.startswith("__")]  # fmt: skip
            count += len(node.body) - len(kept)
            node.body = kept or [ast.Pass()]
    return count


def _definition(node: ast.stmt) -> list[str]:
    """The names of a statement that does nothing but define them; none for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        marks = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
        named = {getattr(mark, "id", getattr(mark, "attr", "")) for mark in marks}
        return [node.name] if named <= PURE else []
    if isinstance(node, ast.Import | ast.ImportFrom):
        return binds(node)
    if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
        calls = [each for each in ast.walk(node.value) if isinstance(each, ast.Call | ast.NamedExpr | ast.Await)]
        if all(isinstance(each, ast.Call) and getattr(each.func, "id", "") in PURE_CALLS for each in calls):
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _words(node: ast.AST) -> set[str]:
    """Every name that a statement reads, and every word of its texts."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            found.update(re.findall(r"\w+", inner.value))
    return found


def binds(node: ast.AST) -> list[str]:
    """The names that one node binds in its scope."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        return [node.name]
    if isinstance(node, ast.MatchMapping) and node.rest:
        return [node.rest]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    return []


def undefined(program: str) -> set[str]:
    """Names that a module reads and neither it nor Python defines, by Python's own analysis of scopes."""
    whole = symtable.symtable(program, "program", "exec")
    defined = {each.get_name() for each in whole.get_symbols() if each.is_assigned() or each.is_imported()}
    read = {each.get_name() for table in _tables(whole) for each in table.get_symbols()
            if each.is_referenced() and (table is whole or each.is_global())}  # fmt: skip
    return {name for name in read - defined if not hasattr(builtins, name)}


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for inner in table.get_children():
        yield from _tables(inner)
